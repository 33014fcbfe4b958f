"""`tools` and `tool_choice` in Anthropic's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlxd.engine.constraint import JsonConstraint
from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.http.tool_rules import Choice, ToolRules, named, rules_of
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import shown

_NAME = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KNOWN = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control", "input_examples"})
_CHOICE_KNOWN = frozenset({"type", "name", "disable_parallel_tool_use"})


def parse_tools(values: Mapping[str, Any], omitted: Omissions, answer: JsonConstraint | None) -> ToolRules:
    """Return the rules of a body whose `tools` is a list and whose `tool_choice` is an object, where given.

    Raises:
        UnsupportedParameter: a tool that a server of Anthropic runs.
        InvalidRequest: a malformed tool, two of one name, or a choice of a tool that is not there.
    """
    tools = tuple(_parse_tool(f"tools[{place}]", tool, omitted) for place, tool in enumerate(values.get("tools", ())))
    given = values.get("tool_choice", {"type": "auto" if tools else "none"})
    omitted.note("tool_choice", given, _CHOICE_KNOWN)
    alone = given.get("disable_parallel_tool_use")
    parallel = alone is None or not field.boolean("tool_choice.disable_parallel_tool_use", alone)
    return rules_of(tools, _parse_choice(given), parallel=parallel, answer=answer)


def _parse_tool(path: str, tool: Any, omitted: Omissions) -> dict[str, Any]:
    kind = field.mapping(path, tool).get("type")
    if kind not in (None, "custom"):
        raise UnsupportedParameter(
            f"{path}.type {shown(kind)} runs on Anthropic's servers and is not supported", param=f"{path}.type"
        )
    omitted.note(path, tool, _KNOWN)
    function = named(path, tool, _NAME, "1 to 128 letters, digits, underscores and dashes")
    field.schema(f"{path}.input_schema", tool.get("input_schema"))
    function["parameters"] = tool["input_schema"]
    if tool.get("strict") is not None:
        function["strict"] = field.boolean(f"{path}.strict", tool["strict"])
    return {"type": "function", "function": function}


def _parse_choice(value: Mapping[str, Any]) -> Choice:
    match value.get("type"):
        case "auto" | "none" as mode:
            return Choice(mode)
        case "any":
            return Choice("required")
        case "tool":
            return Choice("required", (field.text("tool_choice.name", value.get("name")),))
    raise field.wrong("tool_choice.type", value.get("type"), "'auto', 'any', 'tool' or 'none'")
