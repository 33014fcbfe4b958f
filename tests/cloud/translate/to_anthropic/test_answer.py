"""A whole message of Anthropic's as a chat completion."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.protocol.errors import UpstreamError
from tests.cloud.translate.usage import ANTHROPIC_USAGE, OPENAI_USAGE
from tests.support.translated import to_anthropic


def call(call_id: str, arguments: str = "{}", name: str = "weather") -> dict[str, Any]:
    """Return one call of an assistant's message."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def answered(content: list[Any], stop_reason: str = "end_turn") -> dict[str, Any]:
    """Return the chat completion that a message is."""
    message = {
        "id": "msg_1",
        "model": "claude-9",
        "content": content,
        "stop_reason": stop_reason,
        "usage": ANTHROPIC_USAGE,
    }
    result: dict[str, Any] = json.loads(to_anthropic().answer(json.dumps(message).encode()))
    return result


def test_a_whole_answer() -> None:
    """Thoughts, words and calls each have their place; cached tokens are part of the prompt."""
    thought = {"type": "thinking", "thinking": "hm", "signature": "sig"}
    words = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
    assert answered([thought, *words, use], "tool_use") == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 5,
        "model": "asked",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "One two",
                    "refusal": None,
                    "reasoning_content": "hm",
                    "thinking_blocks": [thought],
                    "tool_calls": [call("toolu_1", '{"city":"Rome"}')],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": OPENAI_USAGE,
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
    ],
)
def test_why_it_ended(theirs: str, ours: str) -> None:
    """Each of Anthropic's reasons has a word of OpenAI's."""
    assert answered([{"type": "text", "text": "x"}], theirs)["choices"][0]["finish_reason"] == ours


@pytest.mark.parametrize("body", [b"{}", b'{"content": [{"type": "server_tool_use"}]}', b'{"content": [5]}'])
def test_an_answer_that_is_none(body: bytes) -> None:
    """What a chat has no place for is the upstream's error, not an empty answer."""
    with pytest.raises(UpstreamError):
        to_anthropic().answer(body)
