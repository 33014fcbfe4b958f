"""Anthropic's messages for an upstream that speaks OpenAI's chat completions: what is sent, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.cloud.translate.to_openai import ToOpenAI
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
HI = [{"role": "user", "content": "hi"}]
PLAIN = {"model": "gpt", "max_completion_tokens": 9, "messages": HI}


def sent(**body: Any) -> dict[str, Any]:
    """Return what the upstream is sent for a message."""
    whole = {"model": "big", "max_tokens": 9, "messages": HI} | body
    result: dict[str, Any] = json.loads(ToOpenAI().request(b"", whole, "gpt"))
    return result


def call(call_id: str, arguments: str) -> dict[str, Any]:
    """Return one call of an assistant's message."""
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    """Return a body with one turn of blocks."""
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def test_a_plain_message() -> None:
    """The model is the target's, and the bound has OpenAI's name."""
    assert sent() == PLAIN


def test_a_whole_conversation() -> None:
    """System blocks, images by address and by value, thoughts, calls, several results in one turn, one of an error."""
    mark = {"cache_control": {"type": "ephemeral"}}
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Where?", **mark},
                {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "b", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "sun"},
                {
                    "type": "tool_result",
                    "tool_use_id": "b",
                    "content": [{"type": "text", "text": "none"}],
                    "is_error": True,
                },
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", **mark}]
    assert sent(system=system, messages=messages)["messages"] == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Where?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [call("a", '{"city":"Rome"}'), call("b", "{}")],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: none"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"system": "Be brief."}, {"messages": [{"role": "system", "content": "Be brief."}, *HI]}),
        ({"stop_sequences": ["x"]}, {"stop": ["x"]}),
        ({"stop_sequences": []}, {}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"top_k": 3, "seed": 1}, {"top_k": 3, "seed": 1}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stream": False}, {"stream": False}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"service_tier": "standard_only", "speed": "standard", "container": None}, {"service_tier": "default"}),
        ({"tools": [], "tool_choice": {"type": "auto"}}, {}),
        (
            {"tools": [TOOL]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA},
                    }
                ]
            },
        ),
    ],
)  # fmt: skip
def test_what_a_field_is_there(body: dict[str, Any], said: dict[str, Any]) -> None:
    """Each field that OpenAI's protocol can say is said, neutral ones pass, and nothing else is added."""
    assert sent(**body) == PLAIN | said


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "tool", "name": "weather"}, {"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
    ],
)
def test_the_choice_of_tools(choice: Any, said: dict[str, Any]) -> None:
    """A choice and how many calls at a time are two fields there."""
    body = sent(tools=[TOOL], tool_choice=choice)
    assert {name: body[name] for name in ("tool_choice", "parallel_tool_calls") if name in body} == said


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop_sequences": list("abcde")}, "stop_sequences"),
        ({"container": "c"}, "container"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "output_config.effort"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL | {"input_examples": [{"city": "Rome"}]}]}, "tools[0].input_examples"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
        (user({"type": "document", "source": {}}), "messages[0].content[0].type"),
        (user({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages[0].content[0].source.type"),
        (user({"type": "text", "text": "x", "citations": [{}]}), "messages[0].content[0].citations"),
        (
            user({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": {}}]}),
            "messages[0].content[0].content[0].type",
        ),
        ({"messages": [*HI, {"role": "assistant", "content": "The answer is"}]}, "messages[1]"),
    ],
)
def test_what_cannot_be_said_is_refused(body: dict[str, Any], param: str) -> None:
    """The error names the field, before anything is sent."""
    with pytest.raises(UnsupportedParameter) as refused:
        sent(**body)
    assert refused.value.param == param
    assert "OpenAI" in refused.value.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (user({"type": "tool_result", "content": "x"}), "messages[0].content[0].tool_use_id"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": ["any"]}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ],
)
def test_what_is_malformed_is_refused(body: dict[str, Any], param: str) -> None:
    """A body that cannot be read is the client's mistake, and the field is named."""
    with pytest.raises(InvalidRequest) as refused:
        sent(**body)
    assert (refused.value.code, refused.value.param) == ("invalid_request", param)


def test_thoughts_that_nobody_can_read_are_left_out_in_the_open() -> None:
    """The client is told, as of fields that nobody knows."""
    secret = {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}
    between = ToOpenAI()
    between.request(b"", {"max_tokens": 9, "messages": [*HI, secret, *HI], "odd": 1}, "gpt")
    assert between.left_out == ("odd", "messages[1].content[0]")
