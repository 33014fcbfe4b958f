"""The rules for tools of a request, in any wire shape: which may be called, which must be, how many at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from mlxd.engine.constraint import JsonConstraint, ToolConstraint
from mlxd.engine.tool import ToolUse
from mlxd.http.schema import Text, checked, read_by, wrong
from mlxd.protocol.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_MAX_TOOLS = 512  # agents with a few MCP servers send well over a hundred


def _name(path: str, value: Any) -> Any:
    if not _NAME.fullmatch(checked(Text, path, value)):
        raise wrong(path, value, "1 to 128 letters, digits, underscores, dots and dashes")
    return value


class Definition(msgspec.Struct, kw_only=True):
    """The members that a tool has in every protocol."""

    name: Annotated[Any, read_by(_name, "a text that is not empty", type="string", pattern=f"^{_NAME.pattern}$")]
    description: str = ""

    def function(self, parameters: Mapping[str, Any], strict: bool | None = None) -> dict[str, Any]:  # noqa: FBT001
        """Return the tool with these parameters as templates and parsers want it."""
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return function | ({} if strict is None else {"strict": strict})


@dataclass(frozen=True, slots=True)
class ToolRules:
    """What a request says of tools: what the template is shown, and what the answer is bound to."""

    use: ToolUse | None = None
    constraint: ToolConstraint | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A `tool_choice`, whatever its wire shape: a mode, and the names that it allows (None: all)."""

    mode: str  # none, auto or required
    names: tuple[str, ...] | None = None


def rules_of(
    tools: tuple[dict[str, Any], ...],
    choice: Choice,
    *,
    parallel: bool,
    answer: JsonConstraint | None,
    deferred: Collection[str] = (),
    withheld: Collection[str] = (),
) -> ToolRules:
    """Return the rules of checked tools and a choice.

    Args:
        tools: all of them.
        choice: which may be called.
        parallel: whether more than one at a time.
        answer: what may stand in place of calls.
        deferred: names of tools that the template is not given, as messages describe them.
        withheld: names of tools that are not offered; only a choice that names them binds the answer to them.

    Raises:
        InvalidRequest: two tools of one name, or a choice of a tool that is not there.
    """
    names = [tool["function"]["name"] for tool in tools]
    if len(tools) > _MAX_TOOLS:
        raise InvalidRequest(f"tools holds {len(tools)} tools; at most {_MAX_TOOLS} are taken", param="tools")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"tools holds two functions named {twice!r}", param="tools")
    for name in choice.names or ():
        if name not in names:
            known = ", ".join(map(repr, names[:10])) or "none"
            raise InvalidRequest(f"tool_choice names {name!r}; the tools are: {known}", param="tool_choice")
    functions = [tool["function"] for tool in tools]
    offered = set(names).difference(withheld) if choice.names is None else choice.names
    allowed = [function for function in functions if function["name"] in offered]
    if choice.mode == "required" and not allowed:
        raise InvalidRequest("tool_choice asks for a call, and there are no tools", param="tool_choice")
    if choice.mode == "none" or not tools:
        return ToolRules()
    return ToolRules(
        ToolUse(tuple(_without_strict(tool) for tool in tools), parallel, frozenset(deferred)),
        _constraint(allowed, choice, parallel=parallel, answer=answer) if allowed else None,
    )


def _constraint(
    allowed: list[dict[str, Any]], choice: Choice, *, parallel: bool, answer: JsonConstraint | None
) -> ToolConstraint | None:
    """Return what binds the answer: calls that must be, arguments that must fit, or a document in place of calls."""
    is_required = choice.mode == "required"
    is_strict = any(function.get("strict") for function in allowed)
    if not is_required and not is_strict and answer is None and choice.names is None:
        return None
    what = "tool_choice" if is_required or choice.names is not None else "tools"
    if what == "tools" and not is_strict and answer is not None:
        what = answer.field
    schema = None if answer is None or is_required else answer.schema or '{"type":"object"}'
    return ToolConstraint(json.dumps(allowed), is_required, parallel, what, schema)


def _without_strict(tool: dict[str, Any]) -> dict[str, Any]:
    """Return *tool* for the prompt: how it is enforced is none of the model's business."""
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {**tool, "function": function}
