"""The chunks of a chat's stream as the events of a message's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.cloud.sse import EventCutter
from mlxd.protocol.errors import StreamInterrupted
from tests.cloud.translate.usage import ANTHROPIC_USAGE, OPENAI_USAGE
from tests.support.translated import to_openai


def stream(*deltas: dict[str, Any], reason: str = "stop") -> list[dict[str, Any]]:
    """Return the events that a chat's stream is for the client; what is no delta is a chunk itself."""
    between = to_openai()
    head = {"id": "chatcmpl-1", "model": "gpt-9"}
    chunks = [delta if "error" in delta else head | {"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    chunks.append(head | {"choices": [], "usage": OPENAI_USAGE})
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
        "model": "asked",
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
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": ANTHROPIC_USAGE,
        },
        {"type": "message_stop"},
    ]


def test_calls_of_servers_that_number_them_all_alike() -> None:
    """A new id and a name begin a new call; one without an id is given one."""
    events = stream(piece(0, "{}", "a", "x"), piece(0, "{}", "b", "y"))
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["id"], block["name"]) for block in starts] == [("a", "x"), ("b", "y")]
    (start,) = [e["content_block"] for e in stream(piece(0, "{}", None, "x")) if e["type"] == "content_block_start"]
    assert start["id"].startswith("toolu_")


def test_a_piece_without_an_index_belongs_to_the_call_before_it() -> None:
    """And to the first one where there is none."""

    def bare(arguments: str, name: str | None = None) -> dict[str, Any]:
        (call,) = piece(0, arguments, None if name is None else f"id-{name}", name)["tool_calls"]
        return {"tool_calls": [{key: value for key, value in call.items() if key != "index"}]}

    events = stream(bare('{"a"', "x"), piece(0, ":1}"), piece(1, "{", "b", "y"), bare("}"))
    said = [event["delta"]["partial_json"] for event in events if event["type"] == "content_block_delta"]
    assert said == ['{"a"', ":1}", "{", "}"]
    assert [event["index"] for event in events if event["type"] == "content_block_delta"] == [0, 0, 1, 1]


def test_mixed_calls_are_no_answer() -> None:
    """A message's blocks come one after the other."""
    with pytest.raises(StreamInterrupted, match="mixed"):
        stream(piece(0, "", "a", "x"), piece(1, "", "b", "y"), piece(0, "{}"))


@pytest.mark.parametrize("error", [{"message": "overloaded"}, "overloaded"])
def test_an_error_in_a_stream_is_raised(error: Any) -> None:
    """It is worded in the client's dialect by the one who writes the stream."""
    with pytest.raises(StreamInterrupted, match="overloaded"):
        stream({"content": "x"}, {"error": error})
