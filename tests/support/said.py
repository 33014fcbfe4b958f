"""One answer as each of the two protocols says it: whole, and as the events of a stream. For fake upstreams."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_OPENAI_ENDS = {"end": "stop", "length": "length", "calls": "tool_calls", "refused": "content_filter"}
_ANTHROPIC_ENDS = {"end": "end_turn", "length": "max_tokens", "calls": "tool_use", "refused": "refusal"}


@dataclass(frozen=True)
class Call:
    """A call, its arguments in pieces."""

    id: str
    name: str
    pieces: tuple[str, ...]

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True)
class Said:
    """What an upstream answers, whatever it speaks. Its prompt has 10 tokens, 4 of them cached; its answer 6."""

    words: tuple[str, ...] = ("Hel", "lo ", "from ", "afar")
    thoughts: tuple[str, ...] = ()
    calls: tuple[Call, ...] = ()
    end: str = "end"  # end, length, calls or refused

    @property
    def text(self) -> str:
        return "".join(self.words)


def whole(said: Said, model: str, *, speaks: str) -> dict[str, Any]:
    """Return the answer's body."""
    return _message(said, model) if speaks == "anthropic" else _completion(said, model)


def events(said: Said, model: str, *, speaks: str, include_usage: bool = True) -> tuple[list[bytes], ...]:
    """Return the events before any content, those of the content, and those of the end."""
    if speaks == "anthropic":
        parts = _message_events(said, model)
        return tuple([f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in part] for part in parts)
    chunks = _chunks(said, model, include_usage=include_usage)
    before, content, last = ([b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in part] for part in chunks)
    return before, content, [*last, b"data: [DONE]\n\n"]


def error_event(*, speaks: str) -> bytes:
    """Return an error as an event of a stream."""
    if speaks == "anthropic":
        error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        return b"event: error\ndata: %s\n\n" % json.dumps(error).encode()
    return b'data: {"error": {"message": "Overloaded", "type": "server_error", "param": null, "code": null}}\n\n'


def error_body(words: str, *, speaks: str) -> bytes:
    """Return an error as a body."""
    if speaks == "anthropic":
        error: dict[str, Any] = {"type": "error", "error": {"type": "x_error", "message": words}, "request_id": "r"}
    else:
        error = {"error": {"message": words, "type": "x_error", "param": None, "code": None}}
    return json.dumps(error).encode()


def _openai_usage() -> dict[str, Any]:
    return {
        "prompt_tokens": 10,
        "completion_tokens": 6,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def _anthropic_usage() -> dict[str, Any]:
    return {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 6,
        "output_tokens_details": {"thinking_tokens": 0},
    }


def _completion(said: Said, model: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.text or None, "refusal": None}
    if said.thoughts:
        message["reasoning_content"] = "".join(said.thoughts)
    if said.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in said.calls
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _OPENAI_ENDS[said.end]}
    head = {"id": "up-1", "object": "chat.completion", "created": 5, "model": model}
    return {**head, "choices": [choice], "usage": _openai_usage()}


def _chunks(said: Said, model: str, *, include_usage: bool) -> tuple[list[dict[str, Any]], ...]:
    head = {"id": "up-1", "object": "chat.completion.chunk", "created": 5, "model": model}
    usage = {"usage": None} if include_usage else {}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice], **usage}

    content = [chunk({"reasoning_content": thought}) for thought in said.thoughts]
    content += [chunk({"content": word}) for word in said.words]
    for index, call in enumerate(said.calls):
        function = {"name": call.name, "arguments": ""}
        content.append(
            chunk({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
        )
        content += [
            chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}) for piece in call.pieces
        ]
    last: list[dict[str, Any]] = [chunk({}, _OPENAI_ENDS[said.end])]
    if include_usage:
        last.append({**head, "choices": [], "usage": _openai_usage()})
    return [chunk({"role": "assistant", "content": "", "refusal": None})], content, last


def _message(said: Said, model: str) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if said.thoughts:
        content.append({"type": "thinking", "thinking": "".join(said.thoughts), "signature": "sig"})
    if said.words:
        content.append({"type": "text", "text": said.text})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments or "{}")}
        for call in said.calls
    ]
    return {
        "id": "up-1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": _ANTHROPIC_ENDS[said.end],
        "stop_sequence": None,
        "usage": _anthropic_usage(),
    }


def _message_events(said: Said, model: str) -> tuple[list[dict[str, Any]], ...]:
    begun = _message(Said(words=()), model) | {"stop_reason": None}
    begun["usage"] |= {"output_tokens": 1}
    before: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
    content: list[dict[str, Any]] = []
    index = 0

    def block(start: dict[str, Any], deltas: list[dict[str, Any]]) -> None:
        nonlocal index
        content.append({"type": "content_block_start", "index": index, "content_block": start})
        content.extend({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        content.append({"type": "content_block_stop", "index": index})
        index += 1

    if said.thoughts:
        deltas = [{"type": "thinking_delta", "thinking": thought} for thought in said.thoughts]
        block(
            {"type": "thinking", "thinking": "", "signature": ""},
            [*deltas, {"type": "signature_delta", "signature": "sig"}],
        )
    if said.words:
        block({"type": "text", "text": ""}, [{"type": "text_delta", "text": word} for word in said.words])
    for call in said.calls:
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in call.pieces]
        block({"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, deltas)
    content.insert(1, {"type": "ping"})
    ended = {"stop_reason": _ANTHROPIC_ENDS[said.end], "stop_sequence": None}
    last: list[dict[str, Any]] = [
        {"type": "message_delta", "delta": ended, "usage": _anthropic_usage()},
        {"type": "message_stop"},
    ]
    return before, content, last
