"""Tools in Anthropic's shape: the client's own, those that Anthropic defines or runs, and those that come later."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from mlxd.anthropic.schema import parse_message_body
from mlxd.engine.base import ChatPrompt, GenerationRequest
from mlxd.engine.constraint import ToolConstraint
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

HI: list[Any] = [{"role": "user", "content": "hi"}]
SEARCH = {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}
HOSTED = [
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    {"type": "web_fetch_20250910", "name": "web_fetch"},
    {"type": "code_execution_20250825", "name": "code_execution"},
    SEARCH,
    {"type": "advisor_20260301", "name": "advisor", "model": "x"},
    {"type": "mcp_toolset", "mcp_server_name": "x"},
    {"type": "computer_20250124", "name": "computer", "display_width_px": 1, "display_height_px": 1},
    {"type": "of_tomorrow_20300101", "name": "x"},
]


def tool(name: str, **more: Any) -> dict[str, Any]:
    """Return a tool of the client."""
    return {"name": name, "description": f"does {name}", "input_schema": {"type": "object"}, **more}


def later(name: str) -> dict[str, Any]:
    """Return a deferred one."""
    return tool(name, defer_loading=True)


def parse(omitted: Omissions | None = None, **fields: Any) -> GenerationRequest:
    """Parse a body with these fields."""
    body = {"model": "m", "max_tokens": 9, "messages": HI} | fields
    return parse_message_body(body, NoiseFilter(), omitted or Omissions("m")).request


def shown(asked: GenerationRequest) -> list[str]:
    """Return the names that the template is given."""
    assert isinstance(asked.prompt, ChatPrompt)
    return [] if asked.prompt.tools is None else [each["function"]["name"] for each in asked.prompt.tools.shown]


def callable_names(asked: GenerationRequest) -> list[str]:
    """Return the names that a bound answer may call."""
    assert isinstance(asked.constraint, ToolConstraint)
    return [each["name"] for each in json.loads(asked.constraint.functions)]


def found(*names: str) -> list[Any]:
    """Return a conversation in which a search of the client has found tools."""
    references = [{"type": "tool_reference", "tool_name": name} for name in names]
    call = {"type": "tool_use", "id": "1", "name": "ToolSearch", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": references}
    return [*HI, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]


@pytest.mark.parametrize(
    ("kind", "name", "call"),
    [
        ("bash_20241022", "bash", {"command": "ls"}),
        ("bash_20250124", "bash", {"restart": True}),
        ("text_editor_20241022", "str_replace_editor", {"command": "undo_edit", "path": "/a"}),
        (
            "text_editor_20250124",
            "str_replace_editor",
            {"command": "insert", "path": "/a", "insert_line": 1, "new_str": "b"},
        ),
        (
            "text_editor_20250728",
            "str_replace_based_edit_tool",
            {"command": "insert", "path": "/a", "insert_line": 0, "insert_text": "b"},
        ),
        (
            "text_editor_20250429",
            "str_replace_based_edit_tool",
            {"command": "view", "path": "/", "view_range": [1, -1]},
        ),
        ("memory_20250818", "memory", {"command": "rename", "old_path": "/memories/a", "new_path": "/memories/b"}),
    ],
)
def test_tools_that_the_client_runs_are_functions(kind: str, name: str, call: dict[str, Any]) -> None:
    """With the schema that Anthropic's model knows them by; nothing is left out."""
    asked = parse(Omissions("m", rejects_fields=True), tools=[{"type": kind, "name": name, "cache_control": None}])
    assert shown(asked) == [name]
    assert isinstance(asked.prompt, ChatPrompt)
    assert asked.prompt.tools is not None
    (function,) = (each["function"] for each in asked.prompt.tools.tools)
    assert function["description"]
    assert set(call) <= set(function["parameters"]["properties"])
    jsonschema.validate(call, function["parameters"])


def test_an_editor_of_today_undoes_nothing() -> None:
    """Its client would not know the command."""
    asked = parse(tools=[{"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}])
    assert isinstance(asked.prompt, ChatPrompt)
    assert asked.prompt.tools is not None
    assert "undo_edit" not in str(asked.prompt.tools.tools)


@pytest.mark.parametrize("hosted", HOSTED)
def test_tools_that_only_anthropic_runs_are_left_out(hosted: dict[str, Any]) -> None:
    """Unless a call of one is forced."""
    omitted = Omissions("m")
    assert shown(parse(omitted, tools=[tool("f"), hosted])) == ["f"]
    assert list(omitted.names) == [f"tools[1].{hosted['type']}"]
    assert shown(parse(tools=[hosted])) == []
    assert callable_names(parse(tools=[tool("f"), hosted], tool_choice={"type": "any"})) == ["f"]
    for tools, choice in (([hosted], {"type": "any"}), ([tool("f"), hosted], {"type": "tool", "name": "web_search"})):
        if choice["type"] == "any" or hosted.get("name") == choice["name"]:
            with pytest.raises(UnsupportedParameter) as refused:
                parse(tools=tools, tool_choice=choice)
            assert refused.value.param == "tool_choice"
    with pytest.raises(UnsupportedParameter):
        parse(Omissions("m", rejects_fields=True), tools=[tool("f"), hosted])


def test_flags_of_tools_are_taken() -> None:
    """Only callers other than the model itself are left out; a name may have a dot."""
    flags = {
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
        "eager_input_streaming": True,
        "input_examples": [{}],
        "allowed_callers": ["direct", "code_execution_20250825"],
    }
    assert shown(parse(Omissions("m", rejects_fields=True), tools=[tool("mcp.f", **flags)])) == ["mcp.f"]
    omitted = Omissions("m")
    parse(omitted, tools=[tool("f", allowed_callers=["code_execution_20250825"])])
    assert list(omitted.names) == ["tools[0].allowed_callers"]


def test_a_deferred_tool_stands_where_it_is_referred_to() -> None:
    """And not at the head of the prompt, which is that of the request before; a call of it is read as one."""
    before = parse(tools=[tool("ToolSearch"), later("Placeholder"), tool("Write")])
    after = parse(
        tools=[tool("ToolSearch"), later("WebFetch"), later("Placeholder"), tool("Write")],
        messages=found("WebFetch", "Write", "Gone"),
    )
    assert shown(before) == shown(after) == ["ToolSearch", "Write"]
    assert isinstance(after.prompt, ChatPrompt)
    assert after.prompt.tools is not None
    assert "WebFetch" in [each["function"]["name"] for each in after.prompt.tools.tools]
    assert after.prompt.messages[-1]["content"] == (
        '<functions>\n<function>{"description": "does WebFetch", "name": "WebFetch", "parameters": {"type": "object"}}'
        "</function>\nThe tool Write can be called.\nThe tool Gone is not available.\n</functions>\n"
    )


def test_only_tools_that_were_offered_are_what_a_choice_of_any_binds_to() -> None:
    """A choice by name may be any."""
    tools = [tool("ToolSearch"), later("WebFetch"), later("Placeholder")]
    free = {"type": "any"}
    assert callable_names(parse(tools=tools, tool_choice=free)) == ["ToolSearch"]
    assert callable_names(parse(tools=tools, tool_choice=free, messages=found("WebFetch"))) == [
        "ToolSearch", "WebFetch",
    ]  # fmt: skip
    assert callable_names(parse(tools=tools, tool_choice={"type": "tool", "name": "Placeholder"})) == ["Placeholder"]


@pytest.mark.parametrize("tools", [[SEARCH, tool("f"), later("g")], [later("f"), later("g")]])
def test_deferred_tools_that_nothing_would_find_are_shown(tools: list[Any]) -> None:
    """Where a hosted search was to find them, or where there are no others."""
    assert shown(parse(tools=tools)) == ["f", "g"]


def test_tools_change_in_mid_conversation() -> None:
    """The system adds one, defines one and removes one; the head of the prompt stays."""
    changes = [
        {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "g"}},
        {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": tool("h")}},
        {"type": "tool_addition", "tool": {"type": "mcp_toolset_reference", "name": "x"}},
        {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}},
    ]
    omitted = Omissions("m")
    asked = parse(
        omitted,
        tools=[tool("f"), later("g")],
        tool_choice={"type": "any"},
        messages=[*HI, {"role": "system", "content": changes}],
    )
    assert isinstance(asked.prompt, ChatPrompt)
    told = asked.prompt.messages[-1]["content"]
    assert [f'"name": "{name}"' in told for name in "fgh"] == [False, True, True]
    assert told.endswith("The tool f can no longer be called.\n")
    assert (shown(asked), callable_names(asked)) == (["f"], ["g", "h"])
    assert list(omitted.names) == ["messages[1].content[2].tool.mcp_toolset_reference"]


def test_a_definition_stands_in_the_prompt_once() -> None:
    """However often messages refer to it: a short body is no long prompt."""
    asked = parse(tools=[tool("f"), later("g")], messages=[*found("g", "g", "g"), *found("g")])
    assert isinstance(asked.prompt, ChatPrompt)
    assert str(asked.prompt.messages).count("does g") == 1


def test_a_summary_says_which_tools_have_changed() -> None:
    """What was found before it is not read any more."""
    changes = [{"type": "tool_addition", "tool": {"type": "tool_reference", "name": "g"}}]
    summary = {"type": "compaction", "content": "sum", "signature": "Eq", "tool_changes": changes}
    tools = [tool("f"), later("g"), later("h")]
    turns = [*found("h"), {"role": "assistant", "content": [summary]}, *HI]
    asked = parse(tools=tools, messages=turns, tool_choice={"type": "any"})
    assert isinstance(asked.prompt, ChatPrompt)
    assert asked.prompt.messages[0]["content"].startswith("sum\n\n<functions>")
    assert callable_names(asked) == ["f", "g"]


def test_a_hosted_search_in_the_history_refers_to_tools() -> None:
    """What it found then can be called now."""
    result = {
        "type": "tool_search_tool_result",
        "tool_use_id": "s",
        "content": {
            "type": "tool_search_tool_search_result",
            "tool_references": [{"type": "tool_reference", "tool_name": "g"}],
        },
    }
    turns = [*HI, {"role": "assistant", "content": [result]}, *HI]
    asked = parse(tools=[tool("f"), later("g")], tool_choice={"type": "any"}, messages=turns)
    assert callable_names(asked) == ["f", "g"]


def test_two_tools_of_one_name_are_refused() -> None:
    """Whoever has defined them."""
    with pytest.raises(InvalidRequest, match="two functions named 'bash'"):
        parse(tools=[tool("bash"), {"type": "bash_20250124", "name": "bash"}])
