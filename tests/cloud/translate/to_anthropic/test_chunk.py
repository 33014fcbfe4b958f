"""The events of a message's stream as the chunks of a chat's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.cloud.sse import EventCutter
from mlxd.protocol.errors import StreamInterrupted
from tests.cloud.translate.usage import ANTHROPIC_USAGE, OPENAI_USAGE
from tests.support.translated import to_anthropic


def stream(*events: dict[str, Any], include_usage: bool = False) -> list[dict[str, Any] | str]:
    """Return the chunks that a message's stream is for the client."""
    between = to_anthropic({"stream_options": {"include_usage": include_usage}})
    raw = b": x\n\n" + b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)
    said = b""
    for event in EventCutter().feed(raw):
        said += between.event(event, json.loads(event.data) if event.data else None)
    lines = (said + between.end()).decode().split("\n\n")[:-1]
    return [line if line == "data: [DONE]" else json.loads(line.removeprefix("data: ")) for line in lines]


START = {
    "type": "message_start",
    "message": {"id": "msg_1", "model": "claude-9", "usage": ANTHROPIC_USAGE | {"output_tokens": 1}},
}
STOP = {"type": "message_stop"}


def delta(index: int, kind: str, name: str, value: str) -> dict[str, Any]:
    """Return an event with a piece of a block."""
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, name: value}}


def begin(index: int, **block: Any) -> dict[str, Any]:
    """Return the event that opens a block."""
    return {"type": "content_block_start", "index": index, "content_block": block}


def close(index: int) -> dict[str, Any]:
    """Return the event that ends a block."""
    return {"type": "content_block_stop", "index": index}


def test_a_stream() -> None:
    """A role first, then thoughts with their signature, words, calls with head and pieces, the reason, and usage."""
    chunks = stream(
        START,
        {"type": "ping"},
        begin(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", "thinking", "hm"),
        delta(0, "signature_delta", "signature", "sig"),
        close(0),
        begin(1, type="text", text=""),
        delta(1, "text_delta", "text", "Let me see."),
        close(1),
        begin(2, type="tool_use", id="a", name="weather", input={}),
        delta(2, "input_json_delta", "partial_json", ""),
        delta(2, "input_json_delta", "partial_json", '{"city":'),
        delta(2, "input_json_delta", "partial_json", '"Rome"}'),
        close(2),
        begin(3, type="tool_use", id="b", name="now", input={}),
        delta(3, "input_json_delta", "partial_json", ""),
        close(3),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
        STOP,
        include_usage=True,
    )
    done = chunks.pop()
    assert done == "data: [DONE]"
    objects = [chunk for chunk in chunks if isinstance(chunk, dict)]
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in objects} == {
        ("msg_1", "chat.completion.chunk", 5, "asked")
    }
    *said, usage = objects
    assert (usage["choices"], usage["usage"]) == ([], OPENAI_USAGE)
    assert all(c["usage"] is None for c in said)
    assert [c["choices"][0]["delta"] for c in said] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"reasoning_content": "hm"},
        {"thinking_blocks": [{"index": 0, "type": "thinking", "thinking": "hm", "signature": "sig"}]},
        {"content": "Let me see."},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "now", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in said] == [None] * 9 + ["tool_calls"]


def test_a_stream_without_the_question_for_usage() -> None:
    """No chunk has usage, and none is without a choice."""
    chunks = stream(START, begin(0, type="text", text="x"), {"type": "message_delta", "delta": {}}, STOP)
    assert all(isinstance(chunk, str) or (chunk["choices"] and "usage" not in chunk) for chunk in chunks)


def test_an_error_in_a_stream_is_raised() -> None:
    """It is worded in the client's dialect by the one who writes the stream."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(StreamInterrupted, match="Overloaded"):
        stream(START, error)
