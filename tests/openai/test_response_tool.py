"""Tools of /v1/responses: those that the client runs are functions for the model; the others are left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import ToolParam

from mlxd.engine.base import ChatPrompt
from mlxd.engine.constraint import ToolConstraint
from mlxd.http.omissions import Omissions
from mlxd.openai.response_call import call_item
from mlxd.openai.tool_name import Callee, ToolNames
from mlxd.protocol.errors import UnsupportedParameter
from tests.support.response_body import TOOL, left_out, refusal, response, types_of

OFFERED = {"function", "custom", "namespace", "shell", "apply_patch"}
PATCH: dict[str, Any] = {"type": "custom", "name": "apply_patch", "description": "d"}
AGENTS: dict[str, Any] = {
    "type": "namespace", "name": "agents", "description": "About agents.",
    "tools": [TOOL | {"description": "Do it."}, TOOL | {"name": "g"}, {"type": "custom", "name": "say"}],
}  # fmt: skip


def functions(**fields: Any) -> list[dict[str, Any]]:
    """Return the functions that the template is shown."""
    prompt = response(**fields).request.prompt
    assert isinstance(prompt, ChatPrompt)
    return [] if prompt.tools is None else [tool["function"] for tool in prompt.tools.tools]


@pytest.mark.parametrize("kind", [*sorted(types_of(ToolParam) - OFFERED), "tool_of_next_year"])
def test_a_tool_that_runs_elsewhere_is_left_out(kind: str) -> None:
    """It is named, in the answer's header and not in its list of tools; strict clients are told."""
    omitted = Omissions("m")
    parsed = response(omitted, tools=[{"type": kind}, TOOL])
    assert list(omitted.names) == [f"tools[0].{kind}"]
    assert [tool["name"] for tool in parsed.repeated["tools"]] == ["f"]
    with pytest.raises(UnsupportedParameter):
        response(Omissions("m", rejects_fields=True), tools=[{"type": kind}])


def test_a_shell_of_a_container_is_left_out() -> None:
    """The client runs no other than its own."""
    assert left_out(tools=[{"type": "shell", "environment": {"type": "container_auto"}}]) == ["tools[0].shell"]
    assert left_out(tools=[{"type": "shell", "environment": {"type": "local"}}, {"type": "apply_patch"}]) == []


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ({"type": "web_search"}, "tool_choice.type"),
        ({"type": "mcp", "server_label": "s"}, "tool_choice.type"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}, "tool_choice.tools"),
        ("required", "tool_choice"),
    ],
)
def test_a_tool_that_is_left_out_cannot_be_forced(choice: Any, param: str) -> None:
    """The answer would not be what was asked for."""
    hosted = [{"type": "web_search"}, {"type": "mcp"}]
    assert refusal(tools=hosted, tool_choice=choice).param == param


def test_tools_are_flat() -> None:
    """The template is shown them in the shape of chats; the response repeats them in this API's."""
    parsed = response(tools=[TOOL | {"description": "d", "strict": True, "allowed_callers": ["direct"]}])
    prompt, constraint = parsed.request.prompt, parsed.request.constraint
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools is not None
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert prompt.tools.tools == ({"type": "function", "function": function},)
    assert isinstance(constraint, ToolConstraint)
    assert parsed.repeated["tools"] == [{"type": "function", **function, "strict": True}]
    assert left_out(tools=[TOOL | {"description": "d", "strict": True, "allowed_callers": ["direct"]}]) == []


def test_what_is_asked_of_a_tool_beyond_calls_is_left_out() -> None:
    """One that is to be found by a search is offered at once."""
    asked = {"defer_loading": True, "async": True, "allowed_callers": ["programmatic"], "output_schema": {}}
    assert set(left_out(tools=[TOOL | asked])) == {f"tools[0].{name}" for name in asked}
    assert [tool["name"] for tool in functions(tools=[TOOL | asked])] == ["f"]


def test_a_custom_tool_is_a_function_with_one_text() -> None:
    """A regular expression binds it; a grammar is told."""
    regex = {"type": "grammar", "syntax": "regex", "definition": "a+|b"}
    lark = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    tools = [PATCH, PATCH | {"name": "r", "format": regex}, PATCH | {"name": "l", "format": lark}]
    plain, bound, told = functions(tools=tools)
    assert (plain["name"], plain["description"], plain["parameters"]["required"]) == ("apply_patch", "d", ["input"])
    assert plain["parameters"]["properties"]["input"]["type"] == "string"
    assert bound["parameters"]["properties"]["input"]["pattern"] == "^(?:a+|b)$"
    assert told["parameters"]["properties"]["input"]["description"].endswith('start: "x"')
    assert left_out(tools=tools) == ["tools[1].format", "tools[2].format"]
    assert left_out(tools=[PATCH | {"format": {"type": "text"}}]) == []
    assert response(tools=tools).repeated["tools"] == tools


def test_a_namespace_is_flattened() -> None:
    """Each of its tools has one name; what is said of all stands with the first; the response repeats it whole."""
    parsed = response(tools=[AGENTS, TOOL])
    first, second, third, plain = functions(tools=[AGENTS, TOOL])
    assert [first["name"], second["name"], third["name"]] == ["agents__f", "agents__g", "agents__say"]
    assert (first["description"], second["description"]) == ("About agents.\n\nDo it.", "")
    assert plain["name"] == "f"
    shown = parsed.repeated["tools"][0]
    assert (shown["name"], [tool["name"] for tool in shown["tools"]]) == ("agents", ["f", "g", "say"])
    inner = {"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}
    assert left_out(tools=[inner]) == ["tools[0].tools[0].web_search"]


def test_the_namespace_of_all_functions_is_none() -> None:
    """Codex sends its tools in it, and knows their calls by their names alone."""
    parsed = response(tools=[AGENTS | {"name": "functions"}])
    assert [parsed.names.callee(name) for name in ("f", "say")] == [Callee("function", "f"), Callee("custom", "say")]
    assert functions(tools=[AGENTS | {"name": "functions"}])[0]["name"] == "f"


def test_names_of_namespaces_do_not_collide() -> None:
    """Nor are they longer, or of other characters, than the names of functions may be."""
    callees = [
        Callee("function", "b__c", "a"), Callee("function", "c", "a__b"), Callee("function", "a__b__c"),
        Callee("function", "x" * 100, "n" * 100), Callee("function", "x" * 100, "n" * 100 + "m"),
        Callee("function", "f", "my server/é"), Callee("function", "f", "mcp__s__"),
    ]  # fmt: skip
    names = ToolNames(callees)
    flat = [names.name(callee.namespace, callee.name) for callee in callees]
    assert len(set(flat)) == len(callees)
    assert [names.callee(name) for name in flat] == callees
    assert flat[:3] == ["a__b__c_2", "a__b__c_3", "a__b__c"]
    assert flat[5:] == ["my_server____f", "mcp__s__f"]
    functions(
        tools=[{"type": "namespace", "name": c.namespace, "tools": [TOOL | {"name": c.name}]} for c in callees[3:]]
    )


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        ({"type": "function", "name": "f"}, "f"),
        ({"type": "function", "name": "f", "namespace": "agents"}, "agents__f"),
        ({"type": "custom", "name": "apply_patch"}, "apply_patch"),
        ({"type": "shell"}, "shell"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}, "f"),
        (
            {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "mcp"}, {"type": "custom", "name": "apply_patch"}],
            },
            "apply_patch",
        ),
    ],
)
def test_a_choice_names_tools(choice: dict[str, Any], name: str) -> None:
    """The answer is bound to a call of one of those."""
    constraint = response(tools=[TOOL, AGENTS, PATCH, {"type": "shell"}], tool_choice=choice).request.constraint
    assert isinstance(constraint, ToolConstraint)
    assert constraint.is_required
    assert [function["name"] for function in json.loads(constraint.functions)] == [name]


def test_where_no_allowed_tool_runs_here_none_is_called() -> None:
    """The answer is a text."""
    choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}
    assert functions(tools=[TOOL], tool_choice=choice) == []
    assert left_out(tools=[TOOL], tool_choice=choice) == ["tool_choice.tools[0].type"]


def test_tools_may_stand_in_the_input() -> None:
    """Those that are offered already are not added."""
    item = {"type": "additional_tools", "role": "developer", "tools": [TOOL, TOOL | {"name": "g"}]}
    items = [item, {"role": "user", "content": "hi"}]
    assert [function["name"] for function in functions(tools=[TOOL], input=items)] == ["f", "g"]
    bad = item | {"tools": [{"type": "function"}]}
    assert refusal(input=[bad]).param == "input[0].tools[0].name"


@pytest.mark.parametrize(
    ("callee", "arguments", "item"),
    [
        (Callee("custom", "p"), '{"input":"x\\ny"}', {"type": "custom_tool_call", "name": "p", "input": "x\ny"}),
        (
            Callee("custom", "p", "n"), '{"patch":"x"}',
            {"type": "custom_tool_call", "name": "p", "namespace": "n", "input": "x"},
        ),
        (Callee("custom", "p"), '{"a":1}', {"type": "custom_tool_call", "name": "p", "input": '{"a":1}'}),
        (Callee("custom", "p"), "no json", {"type": "custom_tool_call", "name": "p", "input": "no json"}),
        (
            Callee("function", "f", "n"), "{}",
            {"type": "function_call", "name": "f", "namespace": "n", "arguments": "{}"},
        ),
        (
            Callee("shell", "shell"), '{"commands":["ls"],"timeout_ms":5,"x":1}',
            {"type": "shell_call", "action": {"commands": ["ls"], "timeout_ms": 5}},
        ),
        (Callee("shell", "shell"), '{"a":1}', {"type": "function_call", "name": "shell", "arguments": '{"a":1}'}),
        (
            Callee("apply_patch", "apply_patch"), '{"operation":{"type":"delete_file","path":"p"}}',
            {"type": "apply_patch_call", "operation": {"type": "delete_file", "path": "p"}},
        ),
        (
            Callee("apply_patch", "apply_patch"), '{"operation":{"path":"p"}}',
            {"type": "function_call", "name": "apply_patch", "arguments": '{"operation":{"path":"p"}}'},
        ),
    ],
)  # fmt: skip
def test_a_call_has_the_shape_of_its_tool(callee: Callee, arguments: str, item: dict[str, Any]) -> None:
    """What a model wrote that fits no shape is not lost."""
    assert call_item(callee, "c", arguments) == {"call_id": "c", **item}
