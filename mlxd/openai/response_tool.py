"""`tools` and `tool_choice` of /v1/responses: flat function tools; what runs on OpenAI's servers is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.engine.constraint import JsonConstraint
from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.http.table import Habit, Refused, Table, read
from mlxd.http.tool_rules import Choice, ToolRules, rules_of
from mlxd.openai.tool import parse_function
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import shown

_MODES = ("none", "auto", "required")
_FUNCTION = ("name", "description", "parameters", "strict")
_TOOL: Table = {
    **dict.fromkeys(("type", *_FUNCTION), Habit()),  # read below
    "allowed_callers": Refused((["direct"],)),
    "async": Refused((False,)),
    "defer_loading": Refused((False,)),
    "output_schema": Refused(),
}


def parse_tools(values: Mapping[str, Any], omitted: Omissions, answer: JsonConstraint | None) -> ToolRules:
    """Return the rules of a body whose `tools` is a list, where given.

    Args:
        values: the body's `tools`, `tool_choice` and `parallel_tool_calls`, where given.
        omitted: collects what is left out.
        answer: what `text.format` binds the answer to.

    Raises:
        UnsupportedParameter: a tool that is no function.
        InvalidRequest: a malformed tool, two of one name, or a choice of a tool that is not there.
    """
    tools = tuple(_parse_tool(f"tools[{place}]", tool, omitted) for place, tool in enumerate(values.get("tools", ())))
    choice = _parse_choice(values.get("tool_choice", "auto" if tools else "none"), omitted)
    return rules_of(tools, choice, parallel=values.get("parallel_tool_calls", True), answer=answer)


def shown_tools(tools: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return checked tools as a response repeats them."""
    return [
        {
            "type": "function",
            "name": tool["name"],
            "description": tool.get("description"),
            "parameters": tool.get("parameters"),
            "strict": tool.get("strict") is True,
        }
        for tool in tools
    ]


def _parse_tool(path: str, tool: Any, omitted: Omissions) -> dict[str, Any]:
    kind = field.text(f"{path}.type", field.mapping(path, tool).get("type"))
    _refuse_other(f"{path}.type", kind)
    read(_TOOL, tool, omitted, path)
    function = {name: tool[name] for name in _FUNCTION if name in tool}
    return {"type": "function", "function": parse_function(path, function, omitted)}


def _parse_choice(value: Any, omitted: Omissions) -> Choice:
    if isinstance(value, str) and value in _MODES:
        return Choice(value)
    if not isinstance(value, dict):
        raise field.wrong("tool_choice", value, "'none', 'auto', 'required', or an object that names a function")
    kind = field.text("tool_choice.type", value.get("type"))
    if kind == "allowed_tools":
        omitted.note("tool_choice", value, ("type", "mode", "tools"))
        mode = field.word("auto", "required")("tool_choice.mode", value.get("mode"))
        listed = field.sequence("tool_choice.tools", value.get("tools"))
        return Choice(mode, tuple(_name(f"tool_choice.tools[{place}]", tool) for place, tool in enumerate(listed)))
    omitted.note("tool_choice", value, ("type", "name"))
    return Choice("required", (_name("tool_choice", value),))


def _name(path: str, value: Any) -> str:
    _refuse_other(f"{path}.type", field.mapping(path, value).get("type"))
    return field.text(f"{path}.name", value.get("name"))


def _refuse_other(path: str, kind: Any) -> None:
    if kind != "function":
        message = f"{path} {shown(kind)} is not supported, only 'function': no tool runs on this server"
        raise UnsupportedParameter(message, param=path)
