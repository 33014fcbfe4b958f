"""`tools` and `tool_choice` in Anthropic's shape, and what the messages say of tools.

A tool with `defer_loading` is not at the head of the prompt. Its definition stands where a message refers to it, so
that what was read before it stays in the prompt cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from mlxd.client_tool import client_tool
from mlxd.engine.constraint import JsonConstraint
from mlxd.http.omissions import Omissions
from mlxd.http.schema import Habit, Object, Schema, Text, checked, read
from mlxd.http.tool_rules import Choice, Definition, ToolRules, rules_of
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import kind_word

# A hosted search finds deferred tools. Nothing else would.
_SEARCH = "tool_search_tool_"


class _Tool(Definition, kw_only=True):
    type: Habit = None
    input_schema: Schema
    strict: bool | None = None
    defer_loading: Any = None
    allowed_callers: Any = None
    cache_control: Habit = None
    eager_input_streaming: Habit = None
    input_examples: Habit = None
    max_characters: Habit = None


class _Choice(msgspec.Struct, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: Any = None
    disable_parallel_tool_use: bool = False


class Toolbox:
    """The tools of one body. Its messages refer to them, offer more and withdraw some, in their order."""

    def __init__(self, tools: Iterable[Any], omissions: Omissions) -> None:
        """Read the body's `tools`; those that Anthropic's servers run are left out.

        Raises:
            UnsupportedParameter: a tool is left out, and omissions are refused.
            InvalidRequest: a malformed tool, or two of one name.
        """
        self._omissions = omissions
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
        tool = checked(Object, f"{path}.tool", block.get("tool"))
        kind = tool.get("type")
        if block["type"] == "tool_addition" and kind == "tool_definition":
            given = checked(Object, f"{path}.tool.definition", tool.get("definition"))
            self._functions.pop(str(given.get("name")), None)
            self._defined.discard(str(given.get("name")))
            name = self._add(f"{path}.tool.definition", given)
            if name is None:
                return ""
            self._deferred.add(name)
            return self.refer([name])
        if kind != "tool_reference":
            self._omissions.leave_out(f"{path}.tool.{kind_word(kind)}", "is not served here")
            return ""
        name = checked(Text, f"{path}.tool.name", tool.get("name"))
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
        asked = read(_Choice, given, self._omissions, "tool_choice")
        choice = _meant(asked)
        missing = self._left_out.intersection(choice.names or () if tools else self._left_out)
        if choice.mode == "required" and missing:
            raise UnsupportedParameter(
                f"tool_choice asks for a call, and {min(missing)!r} does not run here", param="tool_choice"
            )
        deferred = self._deferred if len(self._deferred) < len(tools) else ()
        return rules_of(
            tools,
            choice,
            parallel=not asked.disable_parallel_tool_use,
            answer=answer,
            deferred=deferred,
            withheld=self._withheld,
        )

    def _add(self, path: str, tool: Any) -> str | None:
        """Add a tool and return its name; None where it is left out."""
        kind = checked(Object, path, tool).get("type")
        defined = None
        if kind not in (None, "custom"):
            kind = checked(Text, f"{path}.type", kind)
            defined = client_tool(kind)
            if defined is None:
                self._omissions.leave_out(f"{path}.{kind_word(kind)}", "is a tool that this machine does not run")
                self._left_out.add(str(tool.get("name", kind)))
                return None
        read_tool = read(_Tool, tool if defined is None else {**defined, **tool}, self._omissions, path)
        callers = read_tool.allowed_callers
        if callers is not None and not (isinstance(callers, list) and "direct" in callers):
            self._omissions.leave_out(f"{path}.allowed_callers")
        name: str = read_tool.name
        if name in self._functions:
            raise InvalidRequest(f"tools holds two functions named {name!r}", param="tools")
        function = read_tool.function(read_tool.input_schema, read_tool.strict)
        self._functions[name] = {"type": "function", "function": function}
        return name


def _meant(choice: _Choice) -> Choice:
    match choice.type:
        case "any":
            return Choice("required")
        case "tool":
            return Choice("required", (checked(Text, "tool_choice.name", choice.name),))
    return Choice(choice.type)
