"""A whole `chat.completion` → a message of Anthropic's."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.cloud.protocol.base import whole, word
from mlxd.protocol.errors import UpstreamError

_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def message_of(completion: Mapping[str, Any], model: str = "") -> dict[str, Any]:
    """Return the answer in Anthropic's shape, of *model* if it is given.

    Raises:
        UpstreamError: it is no answer to a chat, says something else than text, or calls a tool with what is no JSON
            object.
    """
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    said = choice.get("message")
    if not isinstance(said, dict):
        raise UpstreamError("the upstream answered with something that is no answer to a chat")
    content: list[dict[str, Any]] = []
    thoughts = reasoning(said)
    if thoughts:
        content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
    refusal = word(said, "refusal")
    words = content_of(said) + refusal
    if words:
        content.append({"type": "text", "text": words})
    given = said.get("tool_calls")
    calls = [_use(call) for call in given] if isinstance(given, list) else []
    reason = stop_reason(choice.get("finish_reason"), has_called=bool(calls), has_refused=bool(refusal))
    return message(completion, [*content, *calls], reason, usage_body(completion.get("usage")), model)


def message(
    head: Mapping[str, Any], content: list[dict[str, Any]], reason: str | None, usage: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """Return a message with the id of an answer or a chunk, and with its model unless *model* is given."""
    return {
        "id": word(head, "id"),
        "type": "message",
        "role": "assistant",
        "model": model or word(head, "model"),
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def _use(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise UpstreamError("the upstream answered with a call of what is no function")
    name = word(function, "name")
    try:
        given = orjson.loads(word(function, "arguments") or "{}")
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise UpstreamError(f"the upstream called {name!r} with arguments that are no JSON object")
    return {"type": "tool_use", "id": word(call, "id") or new_call_id(), "name": name, "input": given}


def new_call_id() -> str:
    """Return an id for a call of a server that gives none."""
    return f"toolu_{uuid.uuid4().hex[:24]}"


def content_of(said: Mapping[str, Any]) -> str:
    """Return the text of a message or a delta, which some servers give in parts.

    Raises:
        UpstreamError: a part is no text.
    """
    content = said.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise UpstreamError("the upstream answered with parts that are no text, which a message has no place for")
    return "".join(word(part, "text") for part in parts)


def reasoning(said: Mapping[str, Any]) -> str:
    """Return the thoughts of a message or a delta, which servers call by one of two names."""
    return word(said, "reasoning_content") or word(said, "reasoning")


def stop_reason(finish_reason: Any, *, has_called: bool, has_refused: bool) -> str:
    """Return Anthropic's word for the end. Which stop sequence it was a chat does not tell."""
    if has_refused:
        return "refusal"
    reason = _STOP_REASONS.get(finish_reason, "end_turn") if isinstance(finish_reason, str) else "end_turn"
    return "tool_use" if has_called and reason == "end_turn" else reason


def usage_body(usage: Any) -> dict[str, Any]:
    """Return `usage`: what was read from the cache or written to it is counted apart here."""
    counts = usage if isinstance(usage, dict) else {}
    prompt_details, answer_details = (
        details if isinstance(details, dict) else {}
        for details in (counts.get("prompt_tokens_details"), counts.get("completion_tokens_details"))
    )
    cached = whole(prompt_details.get("cached_tokens"))
    written = whole(prompt_details.get("cache_write_tokens"))
    return {
        "input_tokens": max(whole(counts.get("prompt_tokens")) - cached - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": whole(counts.get("completion_tokens")),
        "output_tokens_details": {"thinking_tokens": whole(answer_details.get("reasoning_tokens"))},
    }
