"""OpenAI's chat completions for an upstream that speaks Anthropic's messages: what is sent, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from tests.support.translated import to_anthropic

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}}
HI = [{"role": "user", "content": "hi"}]
IMAGE = {"type": "image_url"}


def sent(**body: Any) -> dict[str, Any]:
    """Return what the upstream is sent for a chat."""
    result: dict[str, Any] = json.loads(to_anthropic().request(b"", {"model": "big", "messages": HI} | body, "claude"))
    return result


def call(call_id: str, arguments: str = "{}", name: str = "weather") -> dict[str, Any]:
    """Return one call of an assistant's message."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_plain_chat() -> None:
    """The model is the target's; a bound is set, as Anthropic requires one."""
    assert sent() == {"model": "claude", "max_tokens": 4096, "messages": HI}


def test_a_whole_conversation() -> None:
    """System text, images by address and by value, calls, results in order and in one turn, what is said after."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Where?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "auto"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call("a", '{"city":"Rome"}'), call("b", "")]},
        {"role": "tool", "tool_call_id": "a", "content": "sun"},
        {"role": "tool", "tool_call_id": "b", "name": "weather", "content": [{"type": "text", "text": "rain"}]},
        {"role": "user", "content": "And now?"},
    ]
    assert sent(messages=messages) == {
        "model": "claude",
        "max_tokens": 4096,
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Where?"},
                    {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Rome"}},
                    {"type": "tool_use", "id": "b", "name": "weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "sun"},
                    {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
    }


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1, "top_p": 0.5, "top_k": 3}, {"temperature": 1, "top_p": 0.5, "top_k": 3}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        ({"reasoning_effort": "high"}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
            {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        ),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"n": 1, "logprobs": False, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}, {}),
        ({"seed": None, "tools": [], "tool_choice": "auto", "store": True, "metadata": {"a": "b"}}, {}),
        (
            {"tools": [TOOL]},
            {"tools": [{"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}]},
        ),
    ],
)
def test_what_a_field_is_there(body: dict[str, Any], said: dict[str, Any]) -> None:
    """Each field that Anthropic's protocol can say is said, neutral ones pass, and nothing else is added."""
    assert sent(**body) == {"model": "claude", "max_tokens": 4096, "messages": HI} | said


@pytest.mark.parametrize(
    ("choice", "parallel", "said"),
    [
        ("none", None, {"type": "none"}),
        ("auto", None, {"type": "auto"}),
        ("required", None, {"type": "any"}),
        ({"type": "function", "function": {"name": "weather"}}, None, {"type": "tool", "name": "weather"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("none", False, {"type": "none"}),
        (None, True, None),
    ],
)
def test_the_choice_of_tools(choice: Any, parallel: bool | None, said: Any) -> None:
    """A choice and how many calls at a time are one member there."""
    body = sent(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)
    assert body.get("tool_choice") == said


@pytest.mark.parametrize(
    ("body", "said", "left_out"),
    [
        ({"audio": {"voice": "x"}}, {}, ("audio",)),
        ({"modalities": ["text", "audio"]}, {}, ("modalities[1]",)),
        ({"prediction": {"type": "content", "content": "x"}}, {}, ("prediction",)),
        ({"verbosity": "low"}, {}, ("verbosity",)),
        ({"web_search_options": {}}, {}, ("web_search_options",)),
        ({"service_tier": "flex"}, {}, ("service_tier",)),
        ({"reasoning_effort": "ultra"}, {}, ("reasoning_effort",)),
        ({"reasoning_effort": "minimal"}, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, ()),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, {}, ("tools[0].custom",)),
        ({"max_tokens": -1, "top_k": -1, "stream_options": {"include_obfuscation": True}}, {}, ()),
        ({"max_tokens": 1, "max_completion_tokens": 2}, {"max_tokens": 2}, ()),
        ({"stop": ["", *"abcde"]}, {"stop_sequences": list("abcde")}, ()),
        ({"messages": [*HI, {"role": "assistant", "content": None}, *HI]}, {"messages": HI * 2}, ()),
        (
            {"messages": [*HI, {"role": "assistant", "refusal": "No.", "annotations": [{}]}, *HI]},
            {"messages": [*HI, {"role": "assistant", "content": "No."}, *HI]},
            ("messages[1].annotations",),
        ),
        (
            {"messages": [{"role": "user", "name": "Ann", "content": "hi"}]},
            {},
            ("messages[0].name",),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "[audio omitted: it cannot be sent to this model]"}],
                    }
                ]
            },
            ("messages[0].content[0]",),
        ),
        (
            {"messages": [*HI, {"role": "tool", "tool_call_id": "a", "content": None}]},
            {"messages": [*HI, {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": ""},
            ]}]},
            (),
        ),
    ],
)  # fmt: skip
def test_what_the_answer_can_do_without_is_left_out_in_the_open(
    body: dict[str, Any], said: dict[str, Any], left_out: tuple[str, ...]
) -> None:
    """The rest is sent, and the field is named; it is no reason to refuse the request."""
    between = to_anthropic()
    result = json.loads(between.request(b"", {"model": "x", "messages": HI} | body, "claude"))
    assert result == {"model": "claude", "max_tokens": 4096, "messages": HI} | said
    assert between.left_out == left_out


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"seed": 0}, "seed"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}], "tool_choice": "required"}, "tool_choice"),
        ({"temperature": 1.1}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.allowed_tools"),
        ({"messages": [*HI, {"role": "assistant", "content": "Well,"}]}, "messages[1]"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused(body: dict[str, Any], param: str) -> None:
    """The error names the field, before anything is sent."""
    with pytest.raises(UnsupportedParameter) as refused:
        sent(**body)
    assert refused.value.param == param
    assert "Anthropic" in refused.value.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        (
            {"messages": [*HI, {"role": "assistant", "tool_calls": [call("a", "[1]")]}, *HI]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [{"role": "user", "content": [IMAGE | {"image_url": {"url": "ftp://x"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_is_malformed_is_refused(body: dict[str, Any], param: str) -> None:
    """A body that cannot be read is the client's mistake, and the field is named."""
    with pytest.raises(InvalidRequest) as refused:
        sent(**body)
    assert (refused.value.code, refused.value.param) == ("invalid_request", param)


def test_thoughts_go_back_with_their_signature_alone() -> None:
    """Anthropic takes no others: those without are left out, and the client is told."""
    signed = {"index": 0, "type": "thinking", "thinking": "hm", "signature": "sig"}
    messages = [
        *HI,
        {"role": "assistant", "content": "a", "reasoning_content": "hm", "thinking_blocks": [signed]},
        *HI,
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        *HI,
    ]
    between = to_anthropic()
    body = json.loads(between.request(b"", {"model": "x", "messages": messages, "chat_id": 5}, "claude"))
    assert body["messages"][1]["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "sig"}
    assert body["messages"][3]["content"] == "b"
    assert between.left_out == ("chat_id", "messages[3].reasoning_content")


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [("min_p", 0, 0.1), ("repetition_penalty", 1, 2), ("presence_penalty", 0, 1), ("frequency_penalty", 0, 1),
     ("n", 1, 2), ("top_logprobs", 0, 1), ("xtc_probability", 0, 1)],
)  # fmt: skip
def test_a_field_that_changes_nothing_is_left_out(name: str, neutral: float, other: float) -> None:
    """Its neutral value is no reason to refuse a request; any other is."""
    assert sent(**{name: neutral}) == sent()
    with pytest.raises(UnsupportedParameter):
        sent(**{name: other})
