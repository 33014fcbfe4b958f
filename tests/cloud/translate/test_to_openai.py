"""Anthropic's messages for an upstream that speaks OpenAI's chat completions: what is sent, refused and answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.cloud.sse import EventCutter
from mlxd.cloud.translate.to_openai import ToOpenAI
from mlxd.protocol.errors import InvalidRequest, StreamInterrupted, UnsupportedParameter, UpstreamError

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


CHAT_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 7,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 4},
}
USAGE = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 2,
    "cache_read_input_tokens": 5,
    "output_tokens": 7,
    "output_tokens_details": {"thinking_tokens": 4},
}


def answered(finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return the message that a chat completion is."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None} | message, "finish_reason": finish_reason}
    body = {"id": "chatcmpl-1", "model": "gpt-9", "choices": [choice], "usage": CHAT_USAGE}
    result: dict[str, Any] = json.loads(ToOpenAI().answer(json.dumps(body).encode()))
    return result


def test_a_whole_answer() -> None:
    """Thoughts, words and calls are blocks; cached tokens are counted apart."""
    calls = [call("call_1", '{"city":"Rome"}'), call("call_2", "")]
    assert answered("tool_calls", content="Well.", reasoning_content="hm", tool_calls=calls) == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt-9",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "Well."},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": USAGE,
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use"), ("content_filter", "refusal")],
)
def test_why_it_ended(theirs: str, ours: str) -> None:
    """Each of OpenAI's reasons has a word of Anthropic's."""
    assert answered(theirs, content="x")["stop_reason"] == ours


def test_a_refusal_is_told_in_its_words() -> None:
    """OpenAI has a member of its own for them; Anthropic a reason."""
    message = answered(refusal="No.")
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "No."}], "refusal")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": []},
        {"choices": [{"message": {"tool_calls": [call("a", "{")]}}]},
        {"choices": [{"message": {"tool_calls": [5]}}]},
    ],
)
def test_an_answer_that_is_none(body: dict[str, Any]) -> None:
    """What a message has no place for is the upstream's error, not an empty answer."""
    with pytest.raises(UpstreamError):
        ToOpenAI().answer(json.dumps(body).encode())


def stream(*deltas: dict[str, Any], reason: str = "stop") -> list[dict[str, Any]]:
    """Return the events that a chat's stream is for the client; what is no delta is a chunk itself."""
    between = ToOpenAI()
    between.request(b"", {"max_tokens": 9, "messages": HI, "stream": True}, "gpt")
    head = {"id": "chatcmpl-1", "model": "gpt-9"}
    chunks = [delta if "error" in delta else head | {"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    chunks.append(head | {"choices": [], "usage": CHAT_USAGE})
    raw = b": x\n\n" + b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    said = b""
    for event in EventCutter().feed(raw):
        said += between.event(event, json.loads(event.data) if event.data.startswith(b"{") else None)
    events = []
    for raw_event in (said + between.end()).decode().split("\n\n")[:-1]:
        name, data = raw_event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def piece(index: int, arguments: str = "", call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    """Return a delta with a piece of a call."""
    head = {} if call_id is None else {"id": call_id, "type": "function"}
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return {"tool_calls": [{"index": index, "function": function} | head]}


def test_a_stream() -> None:
    """Blocks are opened, filled and closed in turn; the reason and the usage come last."""
    events = stream(
        {"role": "assistant", "content": ""},
        {"reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "Let "},
        {"content": "me see."},
        piece(0, "", "a", "weather"),
        piece(0, '{"city":'),
        piece(0, '"Rome"}'),
        piece(1, "{}", "b", "weather"),
        reason="tool_calls",
    )
    empty = {"input_tokens": 0, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 0}
    message: dict[str, Any] = {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt-9",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": empty | {"output_tokens_details": {"thinking_tokens": 0}},
    }

    def delta(index: int, kind: str, name: str, value: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: value}}

    def use(index: int, call_id: str) -> dict[str, Any]:
        block = {"type": "tool_use", "id": call_id, "name": "weather", "input": {}}
        return {"type": "content_block_start", "index": index, "content_block": block}

    def close(index: int) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": index}

    assert events == [
        {"type": "message_start", "message": message},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        delta(0, "thinking_delta", "thinking", "h"),
        delta(0, "thinking_delta", "thinking", "m"),
        delta(0, "signature_delta", "signature", ""),
        close(0),
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        delta(1, "text_delta", "text", "Let "),
        delta(1, "text_delta", "text", "me see."),
        close(1),
        use(2, "a"),
        delta(2, "input_json_delta", "partial_json", '{"city":'),
        delta(2, "input_json_delta", "partial_json", '"Rome"}'),
        close(2),
        use(3, "b"),
        delta(3, "input_json_delta", "partial_json", "{}"),
        close(3),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": USAGE},
        {"type": "message_stop"},
    ]


def test_calls_of_servers_that_number_them_all_alike() -> None:
    """A new id and a name begin a new call; one without an id is given one."""
    events = stream(piece(0, "{}", "a", "x"), piece(0, "{}", "b", "y"))
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["id"], block["name"]) for block in starts] == [("a", "x"), ("b", "y")]
    (start,) = [e["content_block"] for e in stream(piece(0, "{}", None, "x")) if e["type"] == "content_block_start"]
    assert start["id"].startswith("toolu_")


def test_mixed_calls_are_no_answer() -> None:
    """A message's blocks come one after the other."""
    with pytest.raises(StreamInterrupted, match="mixed"):
        stream(piece(0, "", "a", "x"), piece(1, "", "b", "y"), piece(0, "{}"))


@pytest.mark.parametrize("error", [{"message": "overloaded"}, "overloaded"])
def test_an_error_in_a_stream_is_raised(error: Any) -> None:
    """It is worded in the client's dialect by the one who writes the stream."""
    with pytest.raises(StreamInterrupted, match="overloaded"):
        stream({"content": "x"}, {"error": error})
