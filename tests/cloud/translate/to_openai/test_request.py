"""Anthropic's messages for an upstream that speaks OpenAI's chat completions: what is sent, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from tests.support import claude_code
from tests.support.translated import to_openai

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}
FUNCTIONS = {
    "tools": [
        {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
    ]
}  # fmt: skip
WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search"}
HI = [{"role": "user", "content": "hi"}]
PLAIN = {"model": "gpt", "max_completion_tokens": 9, "messages": HI}


def sent(**body: Any) -> dict[str, Any]:
    """Return what the upstream is sent for a message."""
    whole = {"model": "big", "max_tokens": 9, "messages": HI} | body
    result: dict[str, Any] = json.loads(to_openai().request(b"", whole, "gpt"))
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
        ({"thinking": {"type": "enabled"}}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 4097}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, {"reasoning_effort": "high"}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 31999}, "output_config": {"effort": "low"}},
            {"reasoning_effort": "low"},
        ),
        ({"stop_sequences": ["", *"abcde"]}, {"stop": list("abcde")}),
        ({"context_management": {"edits": []}, "betas": []}, {}),
        ({"service_tier": "standard_only", "speed": "standard", "container": None}, {"service_tier": "default"}),
        ({"tools": [], "tool_choice": {"type": "auto"}}, {}),
        ({"tools": [TOOL]}, FUNCTIONS),
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
    ("body", "said", "left_out"),
    [
        ({"container": "c"}, {}, "container"),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}, {}, "context_management"),
        ({"betas": ["x"]}, {}, "betas"),
        ({"mcp_servers": [{}]}, {}, "mcp_servers"),
        ({"speed": "fast"}, {}, "speed"),
        ({"service_tier": "flex"}, {}, "service_tier"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, {}, "thinking.display"),
        ({"thinking": {"type": "between_tools"}}, {}, "thinking.type"),
        ({"output_config": {"effort": "ultra"}}, {}, "output_config.effort"),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}},
            {"reasoning_effort": "none"},
            "output_config.effort",
        ),
        ({"tools": [WEB_SEARCH]}, {}, "tools[0].web_search_20250305"),
        ({"tools": [TOOL | {"input_examples": [{"city": "Rome"}]}]}, FUNCTIONS, "tools[0].input_examples"),
        ({"tools": [TOOL | {"defer_loading": True}, WEB_SEARCH]}, FUNCTIONS, "tools[0].defer_loading"),
        (
            user({"type": "document", "source": {"type": "url", "url": "https://x"}}),
            {"messages": [{"role": "user", "content": "[document omitted: it cannot be sent to this model]"}]},
            "messages[0].content[0]",
        ),
        (
            user({"type": "image", "source": {"type": "file", "file_id": "f"}}),
            {"messages": [{"role": "user", "content": "[image omitted: it cannot be sent to this model]"}]},
            "messages[0].content[0]",
        ),
        (user({"type": "text", "text": "hi", "citations": [{}]}), {}, "messages[0].content[0].citations"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}, *HI]},
            {"messages": [{"role": "assistant", "content": ""}, *HI]},
            "messages[0].content[0].server_tool_use",
        ),
    ],
)  # fmt: skip
def test_what_the_answer_can_do_without_is_left_out_in_the_open(
    body: dict[str, Any], said: dict[str, Any], left_out: str
) -> None:
    """The rest is sent, and the field is named; it is no reason to refuse the request."""
    between = to_openai()
    whole = {"model": "big", "max_tokens": 9, "messages": HI} | body
    assert json.loads(between.request(b"", whole, "gpt")) == PLAIN | said
    assert left_out == between.left_out[0]


def test_a_tool_that_the_client_runs_becomes_a_function() -> None:
    """Its type stands for a schema that every model can be given."""
    (tool,) = sent(tools=[{"type": "bash_20250124", "name": "bash"}])["tools"]
    assert (tool["type"], tool["function"]["name"]) == ("function", "bash")
    assert "command" in tool["function"]["parameters"]["properties"]


def test_who_asks_is_told_as_a_hash_of_64_characters() -> None:
    """It is the same for every request, OpenAI takes it, and it tells nobody what Claude Code knows of a device."""
    ids = json.dumps({"device_id": "0" * 64, "account_uuid": "", "session_id": "c521f72a-9071-42fc-89ff-075de3ae3506"})
    first, second = (sent(metadata={"user_id": ids})["user"] for _ in range(2))
    assert first == second
    assert len(first) == 64
    assert "0000" not in first
    assert sent(metadata={"user_id": "u"})["user"] != first


def test_images_of_a_result_follow_in_the_users_message() -> None:
    """A chat has them nowhere else; the result's text says so, and documents come as files."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "BBBB"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "x.png "}, image]}
    assert sent(**user(result, {"type": "text", "text": "And?"}, paper))["messages"] == [
        {"role": "tool", "tool_call_id": "a", "content": "x.png [image: see the user's next message]"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "And?"},
                {"type": "file", "file": {"filename": "document", "file_data": "data:application/pdf;base64,BBBB"}},
            ],
        },
    ]


def test_claude_codes_body_is_sent_whole() -> None:
    """Nothing but the edits of the context is left out, and a late system message stands where it stood."""
    given = claude_code.body(claude_code.billing()) | {
        "stream": True,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "x" * 159},
        "tools": [TOOL | {"eager_input_streaming": True}],
    }
    between = to_openai()
    body = json.loads(between.request(b"", given, "gpt"))
    assert between.left_out == ("context_management",)
    assert [message["role"] for message in body["messages"]] == ["system", "user", "system", "assistant", "tool"]
    assert (body["reasoning_effort"], len(body["user"])) == ("high", 64)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"compaction": {}}, "compaction"),
        ({"tools": [WEB_SEARCH], "tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL, WEB_SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}}, "tool_choice.name"),
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
    between = to_openai()
    between.request(b"", {"max_tokens": 9, "messages": [*HI, secret, *HI], "odd": 1}, "gpt")
    assert between.left_out == ("odd", "messages[1].content[0]")
