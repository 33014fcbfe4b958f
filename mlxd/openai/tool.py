"""`tools`, `tool_choice` and `parallel_tool_calls`: what may be called, what must be, and how many at a time.

A custom tool, whose input is one text, is a function of one parameter for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import orjson

from mlxd.engine.constraint import JsonConstraint
from mlxd.http.omissions import Omissions
from mlxd.http.schema import Filled, Object, Schema, Text, checked, kind_of, read, wrong
from mlxd.http.tool_rules import Choice, Definition, ToolRules, rules_of
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import shown

CUSTOM_INPUT = "input"  # the one parameter of what a custom tool is for the model
# "any" is Mistral's word.
_MODES = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


class Function(Definition, kw_only=True):
    """A function as OpenAI's API defines it."""

    parameters: Schema = msgspec.field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool | None = None

    def parsed(self) -> dict[str, Any]:
        """Return it as templates and parsers want it."""
        return self.function(self.parameters, self.strict)


class CustomTool(Definition, kw_only=True):
    """A tool whose input is one text."""

    format: Object | None = None

    def parsed(self, path: str, omissions: Omissions) -> dict[str, Any]:
        """Return the function that it is for the model."""
        return self.function(_custom_parameters(f"{path}.format", self.format, omissions))


class _FunctionTool(msgspec.Struct, kw_only=True):
    type: str
    function: Function


class _CustomTool(msgspec.Struct, kw_only=True):
    type: str
    custom: CustomTool


class _Named(msgspec.Struct, kw_only=True):
    name: Text


class _FunctionChoice(msgspec.Struct, kw_only=True):
    type: str
    function: _Named


class _CustomChoice(msgspec.Struct, kw_only=True):
    type: str
    custom: _Named


class _Allowed(msgspec.Struct, kw_only=True):
    mode: Literal["auto", "required"]
    tools: Filled


class _AllowedChoice(msgspec.Struct, kw_only=True):
    type: str
    allowed_tools: _Allowed


def parse_tools(
    tools: list[Any], choice: Any, omissions: Omissions, *, parallel: bool, answer: JsonConstraint | None
) -> tuple[ToolRules, frozenset[str]]:
    """Return the rules of a body, and the names of its custom tools.

    Args:
        tools: the body's `tools`.
        choice: its `tool_choice`; None where it has none.
        omissions: collects what is left out.
        parallel: whether calls may come more than one at a time.
        answer: what `response_format` binds the answer to.

    Raises:
        UnsupportedParameter: a tool that is no function, where omissions are refused.
        InvalidRequest: a malformed tool, two of one name, or a choice of a tool that is not there.
    """
    functions, custom = [], set()
    for place, given in enumerate(tools):
        path = f"tools[{place}]"
        kind = kind_of(path, given)
        if kind == "function":
            functions.append(read(_FunctionTool, given, omissions, path).function.parsed())
        elif kind == "custom":
            tool = read(_CustomTool, given, omissions, path).custom
            functions.append(tool.parsed(f"{path}.custom", omissions))
            custom.add(tool.name)
        else:
            omissions.leave_out(path, f"is of type {shown(kind)}, which is not supported")
    if choice is None:
        choice = "auto" if functions else "none"
    rules = rules_of(_tools(functions), _parse_choice(choice, omissions), parallel=parallel, answer=answer)
    return rules, frozenset(custom)


def parse_functions(given: list[Any], call: Any, omissions: Omissions, answer: JsonConstraint | None) -> ToolRules:
    """Return the rules of `functions` and `function_call`, the forerunners of tools; raises as `parse_tools`."""
    functions = [read(Function, each, omissions, f"functions[{place}]").parsed() for place, each in enumerate(given)]
    return rules_of(_tools(functions), _parse_function_call(call), parallel=False, answer=answer)


def _tools(functions: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple({"type": "function", "function": function} for function in functions)


def _parse_function_call(value: Any) -> Choice:
    if isinstance(value, str) and value in ("none", "auto"):
        return Choice(value)
    if not isinstance(value, dict):
        raise wrong("function_call", value, "'none', 'auto', or an object with the name of a function")
    return Choice("required", (checked(Text, "function_call.name", value.get("name")),))


def _parse_choice(value: Any, omissions: Omissions) -> Choice:
    if isinstance(value, str) and value in _MODES:
        return Choice(_MODES[value])
    match value.get("type") if isinstance(value, dict) else None:
        case "function":
            return Choice("required", (read(_FunctionChoice, value, omissions, "tool_choice").function.name,))
        case "custom":
            return Choice("required", (read(_CustomChoice, value, omissions, "tool_choice").custom.name,))
        case "allowed_tools":
            allowed = read(_AllowedChoice, value, omissions, "tool_choice").allowed_tools
            return Choice(allowed.mode, tuple(_allowed_name(place, tool) for place, tool in enumerate(allowed.tools)))
    raise wrong("tool_choice", value, "'none', 'auto', 'required', or an object that names a function")


def _allowed_name(place: int, tool: Mapping[str, Any]) -> str:
    path = f"tool_choice.allowed_tools.tools[{place}]"
    if kind_of(path, tool) != "function":
        raise UnsupportedParameter(f"{path}.type is not supported, only 'function'", param=path)
    function = checked(Object, f"{path}.function", tool.get("function"))
    name: str = checked(Text, f"{path}.function.name", function.get("name"))
    return name


def _custom_parameters(path: str, given: Object | None, omissions: Omissions) -> dict[str, Any]:
    """Return the parameters of the function that a custom tool with the `format` *given* is for the model.

    A grammar is told to the model. One that is a regular expression binds calls that are required as well.
    """
    about = "The whole input, as it is."
    schema: dict[str, Any] = {"type": "string"}
    if given is not None and given.get("type") == "grammar":
        grammar = checked(Object, f"{path}.grammar", given.get("grammar", given))  # chat has it one level deeper
        syntax = checked(Literal["lark", "regex"], f"{path}.syntax", grammar.get("syntax"))
        definition = checked(str, f"{path}.definition", grammar.get("definition"))
        kind = "regular expression" if syntax == "regex" else "Lark grammar"
        about = f"{about} It must match this {kind}:\n{definition}"
        if syntax == "regex":
            schema["pattern"] = f"^(?:{definition})$"
        omissions.leave_out(path, "is not enforced")
    elif given is not None and given.get("type") != "text":
        omissions.leave_out(path)
    properties = {CUSTOM_INPUT: {**schema, "description": about}}
    return {"type": "object", "properties": properties, "required": [CUSTOM_INPUT], "additionalProperties": False}


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool: of the one parameter, or of the only text, or the arguments as they are."""
    try:
        given = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    if isinstance(given, dict):
        texts = [given[CUSTOM_INPUT]] if CUSTOM_INPUT in given else list(given.values())
        if len(texts) == 1 and isinstance(texts[0], str):
            return texts[0]
    return arguments
