"""What a request says of tools: parsed, refused by name, or turned into what the answer is bound to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.engine.base import ChatPrompt
from mlxd.engine.constraint import JsonConstraint, ToolConstraint
from mlxd.engine.tool import ToolUse
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.openai.schema import parse_chat
from mlxd.protocol.errors import InvalidRequest

DEEP: dict[str, Any] = {}
for _ in range(300):
    DEEP = {"items": DEEP}
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    """Return a tool as clients send it."""
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA} | function}


def rules(**fields: Any) -> tuple[ToolUse | None, Any]:
    """Return what a body with these fields makes of tools."""
    (request,) = parse_chat({"model": "m", "messages": HI} | fields, NoiseFilter(), Omissions("m")).requests
    assert isinstance(request.prompt, ChatPrompt)
    return request.prompt.tools, request.constraint


def test_tools_are_shown_and_bind_nothing_by_themselves() -> None:
    """With `auto`, which is the default, a model may call or not."""
    expected = {"type": "function", "function": {"name": "weather", "description": "", "parameters": SCHEMA}}
    assert rules(tools=[tool()]) == (ToolUse((expected,)), None)
    assert rules(tools=[tool(description=None, strict=False)], tool_choice="auto") == (ToolUse((expected,)), None)


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": [tool()], "tool_choice": "none"}, {"tools": None}])
def test_without_tools_nothing_is_a_call(fields: dict[str, Any]) -> None:
    """`none` is as good as no tools: the model does not see them."""
    assert rules(**fields) == (None, None)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", ["weather", "time"]),
        ({"type": "function", "function": {"name": "time"}}, ["time"]),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
            ["weather"],
        ),
    ],
)
def test_a_call_that_must_be_is_enforced(choice: Any, names: list[str]) -> None:
    """The answer is bound to calls of the tools that are allowed; the model sees all."""
    use, constraint = rules(tools=[tool(), tool("time")], tool_choice=choice, parallel_tool_calls=False)
    assert isinstance(constraint, ToolConstraint)
    assert [function["name"] for function in json.loads(constraint.functions)] == names
    assert (constraint.is_required, constraint.parallel) == (True, False)
    assert use is not None
    assert (len(use.tools), use.parallel) == (2, False)


def test_strict_arguments_are_enforced_when_a_call_is_made() -> None:
    """A strict tool is a promise about arguments, with `auto` too; the model does not see the word."""
    use, constraint = rules(tools=[tool(strict=True)])
    assert isinstance(constraint, ToolConstraint)
    assert (constraint.is_required, constraint.schema, constraint.field) == (False, None, "tools")
    assert use is not None
    assert "strict" not in use.tools[0]["function"]


def test_a_document_may_stand_in_place_of_calls() -> None:
    """With `response_format` and tools the answer is either; when a call is required it is a call."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    _, either = rules(tools=[tool()], response_format=schema)
    _, call = rules(tools=[tool()], response_format=schema, tool_choice="required")
    _, document = rules(response_format=schema)
    assert (json.loads(either.schema), call.schema) == (SCHEMA, None)
    _, strict = rules(tools=[tool(strict=True)], response_format=schema)
    assert (either.field, call.field, strict.field) == ("response_format", "tool_choice", "tools")
    assert document == JsonConstraint(json.dumps(SCHEMA, separators=(",", ":")))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool(f"t{number}") for number in range(513)]}, "tools"),
        ({"tools": [tool(parameters=DEEP)]}, "tools[0].function.parameters"),
    ],
)
def test_tools_have_an_end(fields: dict[str, Any], param: str) -> None:
    """In number, and in depth."""
    with pytest.raises(InvalidRequest) as refused:
        rules(**fields)
    assert refused.value.param == param


def test_many_tools_are_taken_and_a_name_twice_is_told() -> None:
    """Up to 512; the error says which name it is."""
    use, _ = rules(tools=[tool(f"t{number}") for number in range(512)])
    assert use is not None
    assert len(use.tools) == 512
    with pytest.raises(InvalidRequest, match="two functions named 't1'"):
        rules(tools=[tool("t0"), tool("t1"), tool("t1"), tool("t2")])


@pytest.mark.parametrize("kind", ["web_search", "mcp"])
def test_tools_that_only_a_cloud_has_are_left_out(kind: str) -> None:
    """The others stay; a choice that asks for a call needs one that is left."""
    assert rules(tools=[{"type": kind}, tool()]) == rules(tools=[tool()])
    assert rules(tools=[{"type": kind}]) == rules(tools=[])
    with pytest.raises(InvalidRequest, match="there are no tools"):
        rules(tools=[{"type": kind}], tool_choice="required")


def test_functions_are_the_tools_of_old() -> None:
    """They are offered as tools, one call at a time; tools beside them win."""
    function = tool()["function"]
    assert rules(functions=[function]) == rules(tools=[tool()], parallel_tool_calls=False)
    choice = {"type": "function", "function": {"name": "weather"}}
    asked = rules(functions=[function], function_call={"name": "weather"})
    assert asked == rules(tools=[tool()], tool_choice=choice, parallel_tool_calls=False)
    assert rules(functions=[function], function_call="none") == rules(tools=[])
    assert rules(functions=[function], tools=[tool("other")]) == rules(tools=[tool("other")])
    with pytest.raises(InvalidRequest, match="function_call must be"):
        rules(functions=[function], function_call=5)


def test_any_is_required() -> None:
    """The word of Mistral's clients."""
    assert rules(tools=[tool()], tool_choice="any") == rules(tools=[tool()], tool_choice="required")


def test_unknown_members_of_a_choice_are_named() -> None:
    """Nothing is dropped in silence, however deep it stands."""
    choice = {"type": "function", "function": {"name": "weather", "x": 1}, "y": 2}
    body = {"model": "m", "messages": HI, "tools": [tool()], "tool_choice": choice}
    omitted = Omissions("m")
    parse_chat(body, NoiseFilter(), omitted)
    assert list(omitted.names) == ["tool_choice.y", "tool_choice.function.x"]
