"""A whole chat completion as a message of Anthropic's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.protocol.errors import UpstreamError
from tests.cloud.translate.usage import ANTHROPIC_USAGE, OPENAI_USAGE
from tests.support.translated import to_openai


def call(call_id: str, arguments: str) -> dict[str, Any]:
    """Return one call of an assistant's message."""
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": arguments}}


def answered(finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return the message that a chat completion is."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None} | message, "finish_reason": finish_reason}
    body = {"id": "chatcmpl-1", "model": "gpt-9", "choices": [choice], "usage": OPENAI_USAGE}
    result: dict[str, Any] = json.loads(to_openai().answer(json.dumps(body).encode()))
    return result


def test_a_whole_answer() -> None:
    """Thoughts, words and calls are blocks; cached tokens are counted apart."""
    calls = [call("call_1", '{"city":"Rome"}'), call("call_2", "")]
    assert answered("tool_calls", content="Well.", reasoning_content="hm", tool_calls=calls) == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "asked",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "Well."},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "call_2", "name": "weather", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": ANTHROPIC_USAGE,
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("stop", "end_turn"), ("length", "max_tokens"), ("content_filter", "refusal")],
)
def test_why_it_ended(theirs: str, ours: str) -> None:
    """Each of OpenAI's reasons has a word of Anthropic's."""
    assert answered(theirs, content="x")["stop_reason"] == ours


def test_a_refusal_is_told_in_its_words() -> None:
    """OpenAI has a member of its own for them; Anthropic a reason."""
    message = answered(refusal="No.")
    assert (message["content"], message["stop_reason"]) == ([{"type": "text", "text": "No."}], "refusal")


def test_text_in_parts_is_text() -> None:
    """Some servers answer in the shape of a question."""
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]
    assert answered(content=parts)["content"] == [{"type": "text", "text": "One two"}]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"choices": [{"message": {"content": [{"type": "image_url"}]}}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": []},
        {"choices": [{"message": {"tool_calls": [call("a", "{")]}}]},
        {"choices": [{"message": {"tool_calls": [5]}}]},
    ],
)
def test_an_answer_that_is_none(body: dict[str, Any]) -> None:
    """What a message has no place for is the upstream's error, not an empty answer."""
    with pytest.raises(UpstreamError):
        to_openai().answer(json.dumps(body).encode())
