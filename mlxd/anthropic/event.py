"""The events of a /v1/messages stream, and the blocks of a whole message, in Anthropic's shapes. Pure: no I/O."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from mlxd.engine.base import Delta, Finished, FinishReason, TextKind, Usage
from mlxd.engine.tool import INVALID, CallPiece, is_object
from mlxd.http.sealed import sealed

_BLOCKS = {TextKind.CONTENT: "text", TextKind.REASONING: "thinking"}


def message(message_id: str, model: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without content."""
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def usage_body(usage: Usage, thinking_tokens: int = 0) -> dict[str, Any]:
    """Return `usage`: what came out of the prompt cache is counted apart, as Anthropic does."""
    written_tokens = usage.written_tokens or 0
    return {
        "input_tokens": max(usage.prompt_tokens - usage.cached_tokens - written_tokens, 0),
        "cache_creation_input_tokens": written_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": thinking_tokens + usage.reasoning_tokens},
    }


def event(kind: str, **data: Any) -> bytes:
    """Return one server-sent event."""
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **data}) + b"\n\n"


def stop_reason(finished: Finished, *, has_called: bool) -> str:
    """Return Anthropic's word for the end."""
    if finished.reason is FinishReason.LENGTH:
        return "max_tokens"
    if finished.reason is FinishReason.REFUSED:
        return "refusal"
    if finished.stop is not None:
        return "stop_sequence"
    return "tool_use" if has_called else "end_turn"


@dataclass(slots=True)
class Blocks:
    """The content of one message as it grows: neighbouring text of one kind is a block, each call is one.

    Attributes:
        hides_thoughts: thinking blocks have no text; the thought is in their signature, to come back with it.
    """

    hides_thoughts: bool = False
    blocks: list[dict[str, Any]] = field(default_factory=list)
    has_called: bool = False
    thinking_tokens: int = 0
    _tokens: int = 0
    _open: str | None = None
    _hidden: list[str] = field(default_factory=list)  # of the thought that is open
    _arguments: list[str] = field(default_factory=list)  # of the call that is open

    def take(self, delta: Delta) -> bytes:
        """Add *delta* and return its events."""
        if delta.kind is TextKind.REASONING:
            self.thinking_tokens += delta.completion_tokens - self._tokens
        self._tokens = delta.completion_tokens
        if delta.kind is TextKind.TOOL:
            return b"".join(self._call(piece) for piece in delta.calls)
        kind = _BLOCKS[delta.kind]
        if not delta.text:
            return b""
        opened = b"" if self._open == kind else self.close() + self._start(kind)
        if kind == "thinking" and self.hides_thoughts:
            self._hidden.append(delta.text)
            return opened
        self.blocks[-1][kind] += delta.text
        part = {"type": f"{kind}_delta", kind: delta.text}
        return opened + event("content_block_delta", index=len(self.blocks) - 1, delta=part)

    def close(self) -> bytes:
        """End the block that is open, if one is."""
        if self._open is None:
            return b""
        index, kind, self._open = len(self.blocks) - 1, self._open, None
        signed = b""
        if kind == "tool_use":
            self.blocks[-1]["input"] = _input("".join(self._arguments))
        if kind == "thinking":  # clients send it back; there is nothing to sign
            signature = sealed("".join(self._hidden)) if self._hidden else ""
            self.blocks[index]["signature"], self._hidden = signature, []
            part = {"type": "signature_delta", "signature": signature}
            signed = event("content_block_delta", index=index, delta=part)
        return signed + event("content_block_stop", index=index)

    def _start(self, kind: str) -> bytes:
        self._open = kind
        block: dict[str, Any] = {"type": kind, kind: ""}
        if kind == "thinking":
            block["signature"] = ""
        self.blocks.append(block)
        return event("content_block_start", index=len(self.blocks) - 1, content_block=dict(block))

    def _call(self, piece: CallPiece) -> bytes:
        data = b""
        if piece.name is not None:
            data = self.close()
            self._open, self._arguments, self.has_called = "tool_use", [], True
            block = {
                "type": "tool_use",
                "id": piece.id or f"toolu_{uuid.uuid4().hex[:24]}",
                "name": piece.name,
                "input": {},
            }
            self.blocks.append(block)
            data += event("content_block_start", index=len(self.blocks) - 1, content_block=block)
        if piece.arguments:
            self._arguments.append(piece.arguments)
            part = {"type": "input_json_delta", "partial_json": piece.arguments}
            data += event("content_block_delta", index=len(self.blocks) - 1, delta=part)
        return data + self.close() if piece.is_last else data


def _input(arguments: str) -> Any:
    """Return `input` of a call, which is an object whatever the model wrote."""
    # An object stays as it is: it may hold numbers of any size.
    return orjson.Fragment(arguments) if is_object(arguments) else {INVALID: arguments}
