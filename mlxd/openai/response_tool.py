"""`tools` and `tool_choice` of /v1/responses: what the client runs is a function for the model, all else is left out.

A custom tool is a function with one text; the tools of a namespace go by one name each (`tool_name.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec

from mlxd.engine.constraint import JsonConstraint
from mlxd.http.omissions import Omissions
from mlxd.http.schema import (
    Filled,
    Habit,
    Object,
    Text,
    checked,
    fields_of,
    kind_of,
    omitted,
    read,
    read_both,
    wrong,
)
from mlxd.http.tool_rules import Choice, ToolRules, rules_of
from mlxd.openai.tool import CustomTool, Function
from mlxd.openai.tool_name import Callee, ToolNames, named_space
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import kind_word, shown

_MODES = ("none", "auto", "required")


class _AnyTool(msgspec.Struct, kw_only=True):
    """What may stand beside the fields that each kind of tool has of its own."""

    type: str
    allowed_callers: Annotated[Any, omitted(["direct"])] = None
    is_async: Annotated[Any, omitted(False)] = msgspec.field(name="async", default=None)
    defer_loading: Annotated[Any, omitted(False)] = None  # it is offered at once


class _FunctionTool(Function, kw_only=True):
    output_schema: Annotated[Any, omitted()] = None


class _Namespace(msgspec.Struct, kw_only=True):
    name: Text
    description: str = ""
    tools: list[Any] = []


class _Patch(msgspec.Struct, kw_only=True):
    name: Habit = None
    description: Habit = None


class _Shell(_Patch, kw_only=True):
    environment: Object | None = None


class _Choice(msgspec.Struct, kw_only=True):
    type: str
    name: Text
    namespace: Text | None = None


class _AllowedChoice(msgspec.Struct, kw_only=True):
    type: str
    mode: Literal["auto", "required"]
    tools: Filled


OFFERED: Mapping[str, type[msgspec.Struct]] = {
    "function": _FunctionTool,
    "custom": CustomTool,
    "namespace": _Namespace,
    "shell": _Shell,
    "apply_patch": _Patch,
}
_NOT_HERE = "is a tool that this machine does not run"
_NUMBER = {"type": "integer", "minimum": 0}
_SHELL = {
    "name": "shell",
    "description": "Runs shell commands, in their order, and returns what they print.",
    "parameters": {
        "type": "object",
        "properties": {
            "commands": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "timeout_ms": _NUMBER,
            "max_output_length": _NUMBER,
        },
        "required": ["commands"],
        "additionalProperties": False,
    },
}
_APPLY_PATCH = {
    "name": "apply_patch",
    "description": "Creates, updates or deletes one file.",
    "parameters": {
        "type": "object",
        "properties": {
            "operation": {
                "type": "object",
                "properties": {
                    "type": {"enum": ["create_file", "update_file", "delete_file"]},
                    "path": {"type": "string"},
                    "diff": {
                        "type": "string",
                        "description": "In the V4A format: lines begin with '+', '-' or a space, sections with '@@'. "
                        "Left out to delete a file.",
                    },
                },
                "required": ["type", "path"],
                "additionalProperties": False,
            }
        },
        "required": ["operation"],
        "additionalProperties": False,
    },
}

_Offered = tuple[Callee, dict[str, Any]]  # a tool as the client knows it, and its function


def parse_tools(
    tools: list[Any],
    choice: Any,
    more: Iterable[tuple[str, Any]],
    omissions: Omissions,
    *,
    parallel: bool,
    answer: JsonConstraint | None,
) -> tuple[ToolRules, ToolNames]:
    """Return the rules of a body, and the names of its tools.

    Args:
        tools: the body's `tools`.
        choice: its `tool_choice`; None where it has none.
        more: the place and the definition of tools that stand elsewhere; one that *tools* has as well is not added.
        omissions: collects what is left out: tools that would run on a server among them.
        parallel: whether calls may come more than one at a time.
        answer: what `text.format` binds the answer to.

    Raises:
        UnsupportedParameter: a choice of a tool that is left out.
        InvalidRequest: a malformed tool, two of one name, or a choice of a tool that is not there.
    """
    listed = ((f"tools[{place}]", tool) for place, tool in enumerate(tools))
    offered = [each for path, tool in listed for each in _offered(path, tool, omissions)]
    known = {(callee.namespace, callee.name) for callee, _ in offered}
    added = [each for path, tool in more for each in _offered(path, tool, omissions)]
    offered += [each for each in added if (each[0].namespace, each[0].name) not in known]
    names = ToolNames(callee for callee, _ in offered)
    functions = tuple(
        {"type": "function", "function": {**function, "name": names.name(callee.namespace, callee.name)}}
        for callee, function in offered
    )
    if choice is None:
        choice = "auto" if functions else "none"
    return rules_of(functions, _parse_choice(choice, names, omissions), parallel=parallel, answer=answer), names


def shown_tools(tools: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return checked tools as a response repeats them; those that are left out are not there."""
    return [_shown(tool) for tool in tools if _is_offered(tool)]


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    fields = {**fields_of(_AnyTool), **fields_of(OFFERED[tool["type"]])}
    ours = {name: tool[name] for name in fields if tool.get(name) is not None}
    if tool["type"] == "namespace":
        return {"description": "", **ours, "tools": shown_tools(tool.get("tools") or [])}
    if tool["type"] != "function":
        return ours
    return {
        "type": "function",
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict") is True,
    }


def _is_offered(tool: Mapping[str, Any]) -> bool:
    """Whether the client runs a tool: a shell that it does not would be a container of OpenAI's."""
    environment = tool.get("environment")
    return tool["type"] in OFFERED and (
        tool["type"] != "shell" or environment is None or environment.get("type") == "local"
    )


def _offered(path: str, given: Any, omissions: Omissions, namespace: str | None = None) -> Iterator[_Offered]:
    kind = kind_of(path, given)
    if kind == "shell" and given.get("environment") is not None:
        checked(Object, f"{path}.environment", given["environment"])
    if not _is_offered(given) or (namespace is not None and kind not in ("function", "custom")):
        # The word helps whoever reads the header; what is no word may be anything.
        omissions.leave_out(f"{path}.{kind_word(kind)}", _NOT_HERE)
        return
    tool, _ = read_both(OFFERED[kind], _AnyTool, given, omissions, path)
    match tool:
        case _Namespace():
            yield from _of_namespace(path, tool, omissions)
        case Function():
            yield Callee(kind, tool.name, namespace), tool.parsed()
        case CustomTool():
            yield Callee(kind, tool.name, namespace), tool.parsed(path, omissions)
        case _:
            function = _SHELL if kind == "shell" else _APPLY_PATCH
            yield Callee(kind, kind), function


def _of_namespace(path: str, tool: _Namespace, omissions: Omissions) -> Iterator[_Offered]:
    """Yield the tools of a namespace; what is said of all of them stands before what is said of the first."""
    name, about = named_space(tool.name), tool.description
    for place, inner in enumerate(tool.tools):
        for callee, function in _offered(f"{path}.tools[{place}]", inner, omissions, name):
            described = "\n\n".join(text for text in (about, function["description"]) if text)
            yield callee, {**function, "description": described}
            about = ""


def _parse_choice(value: Any, names: ToolNames, omissions: Omissions) -> Choice:
    if isinstance(value, str) and value in _MODES:
        return Choice(value)
    if not isinstance(value, dict):
        raise wrong("tool_choice", value, "'none', 'auto', 'required', or an object that names a tool")
    kind = kind_of("tool_choice", value)
    if kind != "allowed_tools":
        name = _chosen("tool_choice", value, names, omissions)
        if name is None:
            message = f"tool_choice.type {shown(kind)} is not supported: that tool does not run on this machine"
            raise UnsupportedParameter(message, param="tool_choice.type")
        return Choice("required", (name,))
    choice = read(_AllowedChoice, value, omissions, "tool_choice")
    allowed = []
    for place, tool in enumerate(choice.tools):
        path = f"tool_choice.tools[{place}]"
        name = _chosen(path, tool, names, omissions)
        if name is None:
            omissions.leave_out(f"{path}.type", _NOT_HERE)
        else:
            allowed.append(name)
    if allowed:
        return Choice(choice.mode, tuple(allowed))
    if choice.mode == "required":
        message = "tool_choice asks for a call, and none of its tools runs on this machine"
        raise UnsupportedParameter(message, param="tool_choice.tools")
    return Choice("none")


def _chosen(path: str, given: Any, names: ToolNames, omissions: Omissions) -> str | None:
    """Return what the model calls the tool that is named; None where it is one that is left out."""
    kind = kind_of(path, given)
    if kind in ("shell", "apply_patch"):
        return names.name(None, kind)
    if kind not in ("function", "custom"):
        return None
    choice = read(_Choice, given, omissions, path)
    return names.name(None if choice.namespace is None else named_space(choice.namespace), choice.name)
