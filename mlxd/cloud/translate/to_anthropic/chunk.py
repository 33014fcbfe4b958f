"""The events of a message's stream → the chunks of a chat's: a role first, deltas, a reason, and usage if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from mlxd.cloud.protocol.base import word
from mlxd.cloud.translate.to_anthropic.answer import finish_reason, kind_of, usage_body
from mlxd.protocol.errors import StreamInterrupted

_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class _Call:
    """A call whose arguments are coming."""

    index: int
    whole_input: Mapping[str, Any]  # as it stood at the start of its block; pieces take its place
    has_pieces: bool = False


class Chunks:
    """One stream. An event is taken once, in order."""

    def __init__(self, created_s: int, model: str = "", *, include_usage: bool) -> None:
        """Take the model as the client calls it, if it is not to be the message's.

        With *include_usage* the chunk before the last line tells the usage, and all others have a null there.
        """
        self._head: dict[str, Any] = {"id": "", "object": "chat.completion.chunk", "created": created_s, "model": ""}
        self._model = model
        self._include_usage = include_usage
        self._usage: dict[str, Any] = {}
        self._blocks: dict[int, _Call | dict[str, Any] | None] = {}  # a call, thoughts, or text
        self._calls = 0
        self._thoughts = 0

    def take(self, event: Mapping[str, Any]) -> bytes:
        """Return the chunks that *event* is; pings and what says nothing are none.

        Raises:
            StreamInterrupted: it is an error.
            UpstreamError: it begins a block that a chat has no place for.
        """
        match event.get("type"):
            case "message_start":
                return self._start(_part(event, "message"))
            case "content_block_start":
                return self._start_block(_index(event), _part(event, "content_block"))
            case "content_block_delta":
                return self._delta(_index(event), _part(event, "delta"))
            case "content_block_stop":
                return self._stop_block(_index(event))
            case "message_delta":
                self._note(event.get("usage"))
                return self._chunk({}, finish_reason(_part(event, "delta").get("stop_reason")))
            case "message_stop":
                return (self._usage_chunk() if self._include_usage else b"") + _DONE
            case "error":
                error = _part(event, "error")
                raise StreamInterrupted(
                    f"the upstream ended its answer with an error: {word(error, 'message') or word(error, 'type')}"
                )
        return b""

    def _start(self, message: Mapping[str, Any]) -> bytes:
        self._head |= {"id": word(message, "id"), "model": self._model or word(message, "model")}
        self._note(message.get("usage"))
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _start_block(self, index: int, block: Mapping[str, Any]) -> bytes:
        match kind_of(block):
            case "tool_use":
                call = self._blocks[index] = _Call(self._calls, _part(block, "input"))
                self._calls += 1
                function = {"name": word(block, "name"), "arguments": ""}
                opened = {"index": call.index, "id": word(block, "id"), "type": "function", "function": function}
                return self._chunk({"tool_calls": [opened]})
            case "thinking" | "redacted_thinking":
                self._blocks[index] = dict(block)
                return self._reasoning(word(block, "thinking"))
            case _:
                self._blocks[index] = None
                return self._content(word(block, "text"))

    def _delta(self, index: int, delta: Mapping[str, Any]) -> bytes:
        block = self._blocks.get(index)
        match delta.get("type"):
            case "text_delta":
                return self._content(word(delta, "text"))
            case "thinking_delta" if isinstance(block, dict):
                block["thinking"] = word(block, "thinking") + word(delta, "thinking")
                return self._reasoning(word(delta, "thinking"))
            case "signature_delta" if isinstance(block, dict):
                block["signature"] = word(block, "signature") + word(delta, "signature")
            case "input_json_delta" if isinstance(block, _Call):
                piece = word(delta, "partial_json")
                block.has_pieces = block.has_pieces or bool(piece)
                return self._arguments(block, piece) if piece else b""
        return b""

    def _stop_block(self, index: int) -> bytes:
        block = self._blocks.get(index)
        if isinstance(block, _Call) and not block.has_pieces:  # a call without arguments has no pieces
            return self._arguments(block, orjson.dumps(block.whole_input).decode())
        if isinstance(block, dict):  # now with its signature, for the client to send back
            thought = {"index": self._thoughts, **block}
            self._thoughts += 1
            return self._chunk({"thinking_blocks": [thought]})
        return b""

    def _content(self, text: str) -> bytes:
        return self._chunk({"content": text}) if text else b""

    def _reasoning(self, text: str) -> bytes:
        return self._chunk({"reasoning_content": text}) if text else b""

    def _arguments(self, call: _Call, piece: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": call.index, "function": {"arguments": piece}}]})

    def _chunk(self, delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._include_usage else {}
        return _line({**self._head, "choices": [choice], **usage})

    def _usage_chunk(self) -> bytes:
        return _line({**self._head, "choices": [], "usage": usage_body(self._usage)})

    def _note(self, usage: Any) -> None:
        """Take counts over; those of the end are of the whole stream, and what they leave out stands as it did."""
        if isinstance(usage, dict):
            self._usage |= {name: count for name, count in usage.items() if count is not None}


def _line(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _part(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = given.get(name)
    return value if isinstance(value, dict) else {}


def _index(event: Mapping[str, Any]) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0
