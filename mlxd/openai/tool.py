"""`tools`, `tool_choice` and `parallel_tool_calls`: what may be called, what must be, and how many at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlxd.engine.constraint import JsonConstraint
from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.http.tool_rules import Choice, ToolRules, named, rules_of
from mlxd.openai.custom_tool import custom_function
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import shown

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TOOL_KNOWN = frozenset({"type", "function"})
_CUSTOM_KNOWN = frozenset({"type", "custom"})
_FUNCTION_KNOWN = frozenset({"name", "description", "parameters", "strict"})
_NAMED_KNOWN = frozenset({"name"})
_ALLOWED_KNOWN = frozenset({"type", "allowed_tools"})
_ALLOWED_TOOLS_KNOWN = frozenset({"mode", "tools"})
_ALLOWED_MODE = field.word("auto", "required")
# "any" is Mistral's word.
_MODES = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


def parse_tool(path: str, tool: Any, omitted: Omissions) -> dict[str, Any] | None:
    """Return one tool as templates and parsers want it, a function; None for one that a server of others runs."""
    kind = field.text(f"{path}.type", field.mapping(path, tool).get("type"))
    if kind == "custom":
        omitted.note(path, tool, _CUSTOM_KNOWN)
        custom = field.mapping(f"{path}.custom", tool.get("custom"))
        return _tool(f"{path}.custom", custom_function(f"{path}.custom", custom, omitted), omitted)
    if kind != "function":
        omitted.leave_out(path, f"is of type {shown(kind)}, which is not supported")
        return None
    omitted.note(path, tool, _TOOL_KNOWN)
    return _tool(f"{path}.function", tool.get("function"), omitted)


def _tool(path: str, function: Any, omitted: Omissions) -> dict[str, Any]:
    return {"type": "function", "function": parse_function(path, function, omitted)}


def parse_function(path: str, function: Any, omitted: Omissions) -> dict[str, Any]:
    """Return the checked members of a function's definition; null ones are left out."""
    omitted.note(path, field.mapping(path, function), _FUNCTION_KNOWN)
    parsed = named(path, function, _NAME, "1 to 128 letters, digits, underscores, dots and dashes")
    parameters = function.get("parameters")
    parsed["parameters"] = {"type": "object", "properties": {}}
    if parameters is not None:
        field.schema(f"{path}.parameters", parameters)
        parsed["parameters"] = parameters
    if function.get("strict") is not None:
        parsed["strict"] = field.boolean(f"{path}.strict", function["strict"])
    return parsed


def parse_tools(values: Mapping[str, Any], omitted: Omissions, answer: JsonConstraint | None) -> ToolRules:
    """Return the rules of a chat body whose fields have been type-checked.

    Args:
        values: the body's `tools`, `tool_choice` and `parallel_tool_calls`, where given; or `functions` and
            `function_call`, their forerunners.
        omitted: collects what is left out.
        answer: what `response_format` binds the answer to.

    Raises:
        UnsupportedParameter: a tool that is no function, where omissions are refused.
        InvalidRequest: a malformed tool, two of one name, or a choice of a tool that is not there.
    """
    if uses_functions(values):
        functions = enumerate(values["functions"])
        tools = tuple(_tool(f"functions[{place}]", function, omitted) for place, function in functions)
        return rules_of(tools, _parse_function_call(values.get("function_call", "auto")), parallel=False, answer=answer)
    parsed = (parse_tool(f"tools[{place}]", tool, omitted) for place, tool in enumerate(values.get("tools", ())))
    tools = tuple(tool for tool in parsed if tool is not None)
    choice = _parse_choice(values.get("tool_choice", "auto" if tools else "none"), omitted)
    return rules_of(tools, choice, parallel=values.get("parallel_tool_calls", True), answer=answer)


def custom_names(values: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the custom tools of a body whose tools have been parsed."""
    return frozenset(tool["custom"]["name"] for tool in values.get("tools", ()) if tool["type"] == "custom")


def uses_functions(values: Mapping[str, Any]) -> bool:
    """Whether a body speaks of `functions`, as before there were `tools`: its answer calls that way, one at a time."""
    return bool(values.get("functions")) and not values.get("tools")


def _parse_function_call(value: Any) -> Choice:
    if isinstance(value, str) and value in ("none", "auto"):
        return Choice(value)
    if not isinstance(value, dict):
        raise field.wrong("function_call", value, "'none', 'auto', or an object with the name of a function")
    return Choice("required", (field.text("function_call.name", value.get("name")),))


def _parse_choice(value: Any, omitted: Omissions) -> Choice:
    if isinstance(value, str) and value in _MODES:
        return Choice(_MODES[value])
    expected = "'none', 'auto', 'required', or an object that names a function"
    if not isinstance(value, dict):
        raise field.wrong("tool_choice", value, expected)
    match value.get("type"):
        case "function":
            omitted.note("tool_choice", value, _TOOL_KNOWN)
            function = field.mapping("tool_choice.function", value.get("function"))
            omitted.note("tool_choice.function", function, _NAMED_KNOWN)
            return Choice("required", (field.text("tool_choice.function.name", function.get("name")),))
        case "custom":
            omitted.note("tool_choice", value, _CUSTOM_KNOWN)
            custom = field.mapping("tool_choice.custom", value.get("custom"))
            return Choice("required", (field.text("tool_choice.custom.name", custom.get("name")),))
        case "allowed_tools":
            omitted.note("tool_choice", value, _ALLOWED_KNOWN)
            allowed = field.mapping("tool_choice.allowed_tools", value.get("allowed_tools"))
            omitted.note("tool_choice.allowed_tools", allowed, _ALLOWED_TOOLS_KNOWN)
            mode = _ALLOWED_MODE("tool_choice.allowed_tools.mode", allowed.get("mode"))
            listed = field.sequence("tool_choice.allowed_tools.tools", allowed.get("tools"))
            return Choice(mode, tuple(_allowed_name(place, tool) for place, tool in enumerate(listed)))
    raise field.wrong("tool_choice", value, expected)


def _allowed_name(place: int, tool: Any) -> str:
    path = f"tool_choice.allowed_tools.tools[{place}]"
    if field.mapping(path, tool).get("type") != "function":
        raise UnsupportedParameter(f"{path}.type is not supported, only 'function'", param=path)
    return field.text(f"{path}.function.name", field.mapping(f"{path}.function", tool.get("function")).get("name"))
