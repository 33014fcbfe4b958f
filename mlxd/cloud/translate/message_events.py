"""A message of Anthropic's, whole or as a stream, as events of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.cloud.protocol.base import part, whole, word
from mlxd.engine.base import AnswerEvent, Delta, Finished, FinishReason, Prefilling, TextKind, ThoughtSigned, Usage
from mlxd.engine.tool import CallPiece
from mlxd.protocol.errors import StreamInterrupted, UpstreamError

_REASONS = {
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "refusal": FinishReason.REFUSED,
}
# Of each kind of delta: the member that holds its text.
_MEMBERS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


class MessageEvents:
    """Reads one answer; see `base.Reader`."""

    def __init__(self) -> None:
        self.id = ""
        self._usage: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._has_pieces = False  # of the call that is open

    def whole(self, body: Mapping[str, Any]) -> list[AnswerEvent]:
        """Read a whole message as the stream that it could have been."""
        content = body.get("content")
        if not isinstance(content, list):
            raise UpstreamError("the upstream answered with something that is no message")
        events = self._start(body)
        for index, block in enumerate(content):
            events += self._start_block(index, block) + self._stop_block(index)
        return [*events, self._finished(body)]

    def take(self, event: Mapping[str, Any]) -> list[AnswerEvent]:
        """Read an event of a stream."""
        match event.get("type"):
            case "message_start":
                return self._start(part(event, "message"))
            case "content_block_start":
                return self._start_block(_index(event), event.get("content_block"))
            case "content_block_delta":
                return self._delta(_index(event), part(event, "delta"))
            case "content_block_stop":
                return self._stop_block(_index(event))
            case "message_delta":
                self._note(event.get("usage"))
                return [self._finished(part(event, "delta"))]
            case "error":
                error = part(event, "error")
                raise StreamInterrupted(
                    f"the upstream ended its answer with an error: {word(error, 'message') or word(error, 'type')}"
                )
        return []

    def end(self) -> list[AnswerEvent]:
        """Nothing follows `message_delta`."""
        return []

    def _start(self, message: Mapping[str, Any]) -> list[AnswerEvent]:
        self.id = word(message, "id")
        self._note(message.get("usage"))
        usage = self._counted()
        return [Prefilling(0, usage.cached_tokens, usage.prompt_tokens)]

    def _start_block(self, index: int, block: Any) -> list[AnswerEvent]:
        """Read the head of a block.

        Raises:
            UpstreamError: it is one that only tools of Anthropic's servers make, which nobody has asked for.
        """
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in ("text", "thinking", "redacted_thinking", "tool_use"):
            raise UpstreamError(f"the upstream answered with a block of type {kind!r}, which a chat has no place for")
        self._blocks[index] = dict(block)
        match kind:
            case "tool_use":
                self._has_pieces = False
                return [_call(CallPiece(word(block, "name"), "", is_last=False, id=word(block, "id")))]
            case "text":
                return _text(TextKind.CONTENT, word(block, "text"))
        return _text(TextKind.REASONING, word(block, "thinking"))

    def _delta(self, index: int, delta: Mapping[str, Any]) -> list[AnswerEvent]:
        kind = delta.get("type")
        text = word(delta, _MEMBERS.get(kind, "")) if isinstance(kind, str) else ""
        block = self._blocks.get(index, {})
        match kind:
            case "text_delta":
                return _text(TextKind.CONTENT, text)
            case "thinking_delta":
                block["thinking"] = word(block, "thinking") + text
                return _text(TextKind.REASONING, text)
            case "signature_delta":
                block["signature"] = word(delta, "signature")
            case "input_json_delta" if text and block.get("type") == "tool_use":
                self._has_pieces = True
                return [_call(CallPiece(None, text, is_last=False))]
        return []

    def _stop_block(self, index: int) -> list[AnswerEvent]:
        block = self._blocks.pop(index, {})
        match block.get("type"):
            case "tool_use":  # a call without arguments has no pieces
                rest = "" if self._has_pieces else orjson.dumps(part(block, "input")).decode()
                return [_call(CallPiece(None, rest, is_last=True))]
            case "thinking" | "redacted_thinking":  # now with its signature, for the client to send back
                return [ThoughtSigned(block)]
        return []

    def _finished(self, said: Mapping[str, Any]) -> Finished:
        stop_reason, stop = said.get("stop_reason"), said.get("stop_sequence")
        reason = _REASONS.get(stop_reason) if isinstance(stop_reason, str) else None
        return Finished(0, reason or FinishReason.STOP, self._counted(), stop if isinstance(stop, str) else None)

    def _note(self, usage: Any) -> None:
        """Take counts over; those of the end are of the whole stream, and what they leave out stands as it did."""
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}

    def _counted(self) -> Usage:
        """Return the usage: what was read from the cache or written to it is part of the prompt here."""
        cached = whole(self._usage.get("cache_read_input_tokens"))
        written = whole(self._usage.get("cache_creation_input_tokens"))
        return Usage(
            whole(self._usage.get("input_tokens")) + cached + written,
            cached,
            whole(self._usage.get("output_tokens")),
            written,
            whole(part(self._usage, "output_tokens_details").get("thinking_tokens")),
        )


def _text(kind: TextKind, text: str) -> list[AnswerEvent]:
    return [Delta(0, text, kind, 0)] if text else []


def _call(piece: CallPiece) -> Delta:
    return Delta(0, "", TextKind.TOOL, 0, calls=(piece,))


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0
