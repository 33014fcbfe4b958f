"""A whole message of Anthropic's → a `chat.completion`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.cloud.protocol.base import whole, word
from mlxd.protocol.errors import UpstreamError

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def completion(message: Mapping[str, Any], created_s: int, model: str = "") -> dict[str, Any]:
    """Return the answer in OpenAI's shape, of *model* if it is given.

    Thoughts with their signatures are kept in `thinking_blocks`.

    Raises:
        UpstreamError: it is no message, or has a block that a chat has no place for.
    """
    content = message.get("content")
    if not isinstance(content, list):
        raise UpstreamError("the upstream answered with something that is no message")
    texts: list[str] = []
    thoughts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for block in content:
        match kind_of(block):
            case "text":
                texts.append(word(block, "text"))
            case "thinking" | "redacted_thinking":
                thoughts.append(dict(block))
            case "tool_use":
                function = {"name": word(block, "name"), "arguments": orjson.dumps(block.get("input", {})).decode()}
                calls.append({"id": word(block, "id"), "type": "function", "function": function})
    said: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None}
    if calls and not texts:
        said["content"] = None
    if thoughts:
        said["reasoning_content"] = "".join(word(block, "thinking") for block in thoughts)
        said["thinking_blocks"] = thoughts
    if calls:
        said["tool_calls"] = calls
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": finish_reason(message.get("stop_reason"))}
    return {
        "id": word(message, "id"),
        "object": "chat.completion",
        "created": created_s,
        "model": model or word(message, "model"),
        "choices": [choice],
        "usage": usage_body(message.get("usage")),
    }


def kind_of(block: Any) -> str:
    """Return the kind of a block.

    Raises:
        UpstreamError: it is one that only tools of Anthropic's servers make, which nobody has asked for.
    """
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in ("text", "thinking", "redacted_thinking", "tool_use"):
        raise UpstreamError(f"the upstream answered with a block of type {kind!r}, which a chat has no place for")
    return str(kind)


def finish_reason(stop_reason: Any) -> str:
    """Return OpenAI's word for the end."""
    return _FINISH_REASONS.get(stop_reason, "stop") if isinstance(stop_reason, str) else "stop"


def usage_body(usage: Any) -> dict[str, Any]:
    """Return `usage`: what was read from the cache or written to it is part of the prompt here."""
    counts = usage if isinstance(usage, dict) else {}
    cached = whole(counts.get("cache_read_input_tokens"))
    written = whole(counts.get("cache_creation_input_tokens"))
    prompt = whole(counts.get("input_tokens")) + cached + written
    answer = whole(counts.get("output_tokens"))
    details = counts.get("output_tokens_details")
    thoughts = whole(details.get("thinking_tokens")) if isinstance(details, dict) else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }
