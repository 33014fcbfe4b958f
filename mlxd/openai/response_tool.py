"""`tools` and `tool_choice` of /v1/responses: what the client runs is a function for the model, all else is left out.

A custom tool is a function with one text; the tools of a namespace go by one name each (`tool_name.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlxd.engine.constraint import JsonConstraint
from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.http.table import Habit, Omitted, Table, read
from mlxd.http.tool_rules import Choice, ToolRules, rules_of
from mlxd.openai.custom_tool import custom_function
from mlxd.openai.tool import parse_function
from mlxd.openai.tool_name import Callee, ToolNames, named_space
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import kind_word, shown

_MODES = ("none", "auto", "required")
_FUNCTION = ("name", "description", "parameters", "strict")
_ANY_TOOL: Table = {
    **dict.fromkeys(("type", "name", "description"), Habit()),  # read below
    "allowed_callers": Omitted((["direct"],)),
    "async": Omitted((False,)),
    "defer_loading": Omitted((False,)),  # it is offered at once
}
OFFERED: Mapping[str, Table] = {
    "function": {**_ANY_TOOL, **dict.fromkeys(("parameters", "strict"), Habit()), "output_schema": Omitted()},
    "custom": {**_ANY_TOOL, "format": Habit()},
    "namespace": {**_ANY_TOOL, "tools": Habit()},
    "shell": {**_ANY_TOOL, "environment": Habit()},
    "apply_patch": _ANY_TOOL,
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

_Offered = tuple[Callee, dict[str, Any]]  # a tool as the client knows it, and its function without a name


def parse_tools(
    values: Mapping[str, Any], more: Iterable[tuple[str, Any]], omitted: Omissions, answer: JsonConstraint | None
) -> tuple[ToolRules, ToolNames]:
    """Return the rules of a body whose `tools` is a list, where given, and the names of its tools.

    Args:
        values: the body's `tools`, `tool_choice` and `parallel_tool_calls`, where given.
        more: the place and the definition of tools that stand elsewhere; one that `tools` has as well is not added.
        omitted: collects what is left out: tools that would run on a server among them.
        answer: what `text.format` binds the answer to.

    Raises:
        UnsupportedParameter: a choice of a tool that is left out.
        InvalidRequest: a malformed tool, two of one name, or a choice of a tool that is not there.
    """
    listed = [(f"tools[{place}]", tool) for place, tool in enumerate(values.get("tools", ()))]
    offered = [each for path, tool in listed for each in _offered(path, tool, omitted)]
    known = {(callee.namespace, callee.name) for callee, _ in offered}
    added = [each for path, tool in more for each in _offered(path, tool, omitted)]
    offered += [each for each in added if (each[0].namespace, each[0].name) not in known]
    names = ToolNames(callee for callee, _ in offered)
    tools = tuple(
        {"type": "function", "function": {**function, "name": names.name(callee.namespace, callee.name)}}
        for callee, function in offered
    )
    choice = _parse_choice(values.get("tool_choice", "auto" if tools else "none"), names, omitted)
    return rules_of(tools, choice, parallel=values.get("parallel_tool_calls", True), answer=answer), names


def shown_tools(tools: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return checked tools as a response repeats them; those that are left out are not there."""
    return [_shown(tool) for tool in tools if _is_offered(tool)]


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    ours = {name: tool[name] for name in OFFERED[tool["type"]] if tool.get(name) is not None}
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


def _offered(path: str, tool: Any, omitted: Omissions, namespace: str | None = None) -> Iterator[_Offered]:
    kind = field.text(f"{path}.type", field.mapping(path, tool).get("type"))
    if kind == "shell" and tool.get("environment") is not None:
        field.mapping(f"{path}.environment", tool["environment"])
    if not _is_offered(tool) or (namespace is not None and kind not in ("function", "custom")):
        # The word helps whoever reads the header; what is no word may be anything.
        omitted.leave_out(f"{path}.{kind_word(kind)}", _NOT_HERE)
        return
    read(OFFERED[kind], tool, omitted, path)
    if kind == "namespace":
        yield from _of_namespace(path, tool, omitted)
        return
    match kind:
        case "custom":
            function = custom_function(path, tool, omitted)
        case "shell":
            function = _SHELL
        case "apply_patch":
            function = _APPLY_PATCH
        case _:
            function = {name: tool[name] for name in _FUNCTION if name in tool}
    parsed = parse_function(path, function, omitted)
    yield Callee(kind, parsed["name"], namespace), parsed


def _of_namespace(path: str, tool: Mapping[str, Any], omitted: Omissions) -> Iterator[_Offered]:
    """Yield the tools of a namespace; what is said of all of them stands before what is said of the first."""
    name = named_space(field.text(f"{path}.name", tool.get("name")))
    about = tool.get("description")
    about = "" if about is None else field.string(f"{path}.description", about)
    for place, inner in enumerate(field.listing(f"{path}.tools", tool.get("tools") or [])):
        for callee, function in _offered(f"{path}.tools[{place}]", inner, omitted, name):
            described = "\n\n".join(text for text in (about, function["description"]) if text)
            yield callee, {**function, "description": described}
            about = ""


def _parse_choice(value: Any, names: ToolNames, omitted: Omissions) -> Choice:
    if isinstance(value, str) and value in _MODES:
        return Choice(value)
    if not isinstance(value, dict):
        raise field.wrong("tool_choice", value, "'none', 'auto', 'required', or an object that names a tool")
    kind = field.text("tool_choice.type", value.get("type"))
    if kind != "allowed_tools":
        name = _chosen("tool_choice", value, names, omitted)
        if name is None:
            message = f"tool_choice.type {shown(kind)} is not supported: that tool does not run on this machine"
            raise UnsupportedParameter(message, param="tool_choice.type")
        return Choice("required", (name,))
    omitted.note("tool_choice", value, ("type", "mode", "tools"))
    mode = field.word("auto", "required")("tool_choice.mode", value.get("mode"))
    allowed = []
    for place, tool in enumerate(field.sequence("tool_choice.tools", value.get("tools"))):
        path = f"tool_choice.tools[{place}]"
        name = _chosen(path, field.mapping(path, tool), names, omitted)
        if name is None:
            omitted.leave_out(f"{path}.type", _NOT_HERE)
        else:
            allowed.append(name)
    if allowed:
        return Choice(mode, tuple(allowed))
    if mode == "required":
        message = "tool_choice asks for a call, and none of its tools runs on this machine"
        raise UnsupportedParameter(message, param="tool_choice.tools")
    return Choice("none")


def _chosen(path: str, value: Mapping[str, Any], names: ToolNames, omitted: Omissions) -> str | None:
    """Return what the model calls the tool that is named; None where it is one that is left out."""
    kind = field.text(f"{path}.type", value.get("type"))
    if kind in ("shell", "apply_patch"):
        return names.name(None, kind)
    if kind not in ("function", "custom"):
        return None
    omitted.note(path, value, ("type", "name", "namespace"))
    name = field.text(f"{path}.name", value.get("name"))
    namespace = value.get("namespace")
    if namespace is not None:
        namespace = named_space(field.text(f"{path}.namespace", namespace))
    return names.name(namespace, name)
