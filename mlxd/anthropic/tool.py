"""`tools` and `tool_choice` in Anthropic's shape, and what the messages say of tools.

A tool with `defer_loading` is not at the head of the prompt. Its definition stands where a message refers to it, so
that what was read before it stays in the prompt cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mlxd.client_tool import client_tool
from mlxd.engine.constraint import JsonConstraint
from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.http.tool_rules import Choice, ToolRules, named, rules_of
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import kind_word

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_KNOWN = frozenset(
    {
        "type",
        "name",
        "description",
        "input_schema",
        "strict",
        "cache_control",
        "defer_loading",
        "eager_input_streaming",
        "input_examples",
        "max_characters",
    }
)
_CHOICE_KNOWN = frozenset({"type", "name", "disable_parallel_tool_use"})
# A hosted search finds deferred tools. Nothing else would.
_SEARCH = "tool_search_tool_"


class Toolbox:
    """The tools of one body. Its messages refer to them, offer more and withdraw some, in their order."""

    def __init__(self, tools: Iterable[Any], omitted: Omissions) -> None:
        """Read the body's `tools`; those that Anthropic's servers run are left out.

        Raises:
            UnsupportedParameter: a tool is left out, and omissions are refused.
            InvalidRequest: a malformed tool, or two of one name.
        """
        self._omitted = omitted
        self._functions: dict[str, dict[str, Any]] = {}
        self._left_out: set[str] = set()
        self._deferred: set[str] = set()  # not at the head of the prompt
        self._withheld: set[str] = set()  # not offered so far, or not any more
        self._defined: set[str] = set()  # by a message: once, or a short body would be a long prompt
        has_search = False
        for place, tool in enumerate(tools):
            name = self._add(f"tools[{place}]", tool)
            has_search = has_search or str(tool.get("type")).startswith(_SEARCH)
            if name is not None and tool.get("defer_loading") is True:
                self._deferred.add(name)
        if has_search or len(self._deferred) == len(self._functions):
            self._deferred.clear()
        self._withheld |= self._deferred

    def refer(self, names: Iterable[str]) -> str:
        """Offer tools from here on, and return the text that tells the model of them."""
        lines = []
        for name in names:
            self._withheld.discard(name)
            if name in self._deferred and name not in self._defined:
                self._defined.add(name)
                function = self._functions[name]["function"]
                shown = {key: function[key] for key in ("description", "name", "parameters")}
                lines.append(f"<function>{json.dumps(shown, ensure_ascii=False)}</function>\n")
            elif name in self._functions:
                lines.append(f"The tool {name} can be called.\n")
            else:
                lines.append(f"The tool {name} is not available.\n")
        text = "".join(lines)
        return f"<functions>\n{text}</functions>\n" if "<function>" in text else text

    def change(self, path: str, block: Mapping[str, Any]) -> str:
        """Apply a block that adds or removes a tool in mid-conversation, and return the text that tells of it."""
        tool = field.mapping(f"{path}.tool", block.get("tool"))
        kind = tool.get("type")
        if block["type"] == "tool_addition" and kind == "tool_definition":
            given = field.mapping(f"{path}.tool.definition", tool.get("definition"))
            self._functions.pop(str(given.get("name")), None)
            self._defined.discard(str(given.get("name")))
            name = self._add(f"{path}.tool.definition", given)
            if name is None:
                return ""
            self._deferred.add(name)
            return self.refer([name])
        if kind != "tool_reference":
            self._omitted.leave_out(f"{path}.tool.{kind_word(kind)}", "is not served here")
            return ""
        name = field.text(f"{path}.tool.name", tool.get("name"))
        if block["type"] == "tool_addition":
            return self.refer([name])
        self._withheld.add(name)
        return f"The tool {name} can no longer be called.\n"

    def rules(self, given: Mapping[str, Any] | None, answer: JsonConstraint | None) -> ToolRules:
        """Return the rules of a body, once its messages have been read.

        Args:
            given: its `tool_choice`.
            answer: what its format binds the answer to.

        Raises:
            UnsupportedParameter: a choice of a tool that was left out.
            InvalidRequest: a choice of a tool that is not there.
        """
        tools = tuple(self._functions.values())
        if given is None:
            given = {"type": "auto" if tools else "none"}
        self._omitted.note("tool_choice", given, _CHOICE_KNOWN)
        alone = given.get("disable_parallel_tool_use")
        parallel = alone is None or not field.boolean("tool_choice.disable_parallel_tool_use", alone)
        choice = _parse_choice(given)
        missing = self._left_out.intersection(choice.names or () if tools else self._left_out)
        if choice.mode == "required" and missing:
            raise UnsupportedParameter(
                f"tool_choice asks for a call, and {min(missing)!r} does not run here", param="tool_choice"
            )
        deferred = self._deferred if len(self._deferred) < len(tools) else ()
        return rules_of(tools, choice, parallel=parallel, answer=answer, deferred=deferred, withheld=self._withheld)

    def _add(self, path: str, tool: Any) -> str | None:
        """Add a tool and return its name; None where it is left out."""
        kind = field.mapping(path, tool).get("type")
        defined = None
        if kind not in (None, "custom"):
            kind = field.text(f"{path}.type", kind)
            defined = client_tool(kind)
            if defined is None:
                self._omitted.leave_out(f"{path}.{kind_word(kind)}", "is a tool that this machine does not run")
                self._left_out.add(str(tool.get("name", kind)))
                return None
        callers = tool.get("allowed_callers")
        is_direct = callers is None or (isinstance(callers, list) and "direct" in callers)
        self._omitted.note(path, tool, {*_KNOWN, "allowed_callers"} if is_direct else _KNOWN)
        given = tool if defined is None else {**defined, **tool}
        function = named(path, given, _NAME, "1 to 128 letters, digits, underscores, dots and dashes")
        field.schema(f"{path}.input_schema", given.get("input_schema"))
        function["parameters"] = given["input_schema"]
        if tool.get("strict") is not None:
            function["strict"] = field.boolean(f"{path}.strict", tool["strict"])
        name: str = function["name"]
        if name in self._functions:
            raise InvalidRequest(f"tools holds two functions named {name!r}", param="tools")
        self._functions[name] = {"type": "function", "function": function}
        return name


def _parse_choice(value: Mapping[str, Any]) -> Choice:
    match value.get("type"):
        case "auto" | "none" as mode:
            return Choice(mode)
        case "any":
            return Choice("required")
        case "tool":
            return Choice("required", (field.text("tool_choice.name", value.get("name")),))
    raise field.wrong("tool_choice.type", value.get("type"), "'auto', 'any', 'tool' or 'none'")
