"""The chunks of a chat's stream → the events of a message's: one block after the other, each opened and closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.cloud.protocol.base import word
from mlxd.cloud.translate.to_openai.answer import (
    content_of,
    message,
    new_call_id,
    reasoning,
    stop_reason,
    usage_body,
)
from mlxd.protocol.errors import StreamInterrupted


class Events:
    """One stream. A chunk is taken once, in order; `end` is called once, after the last."""

    def __init__(self, model: str = "") -> None:
        """Begin before the first chunk; the answer is of *model* if it is given."""
        self._model = model
        self._has_begun = False
        self._blocks = 0
        self._open: str | None = None  # the kind of the block that is open: text, thinking or tool_use
        self._calls: dict[int, str] = {}  # the id of each call by its index in the chat
        self._current = 0  # the index of the last call
        self._finish_reason: Any = None
        self._has_refused = False
        self._usage: Any = None

    def take(self, chunk: Mapping[str, Any]) -> bytes:
        """Return the events that *chunk* is; roles and empty deltas are none.

        Raises:
            StreamInterrupted: it is an error, or gives more of a call after another one has begun.
            UpstreamError: it says something else than text.
        """
        error = chunk.get("error")
        if error is not None:
            words = word(error, "message") if isinstance(error, dict) else str(error)
            raise StreamInterrupted(f"the upstream ended its answer with an error: {words}")
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        said = self._begin(chunk)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict):
                said += self._delta(delta)
            if isinstance(choice, dict) and choice.get("finish_reason") is not None:
                self._finish_reason = choice["finish_reason"]
        return said

    def end(self) -> bytes:
        """Return what ends the message: its reason and its usage, which a chat tells last."""
        reason = stop_reason(self._finish_reason, has_called=bool(self._calls), has_refused=self._has_refused)
        ended = {"stop_reason": reason, "stop_sequence": None}
        usage = usage_body(self._usage)
        return (
            self._begin({}) + self._close() + _event("message_delta", delta=ended, usage=usage) + _event("message_stop")
        )

    def _begin(self, chunk: Mapping[str, Any]) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return _event("message_start", message=message(chunk, [], None, usage_body(None), self._model))

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        refusal = word(delta, "refusal")
        self._has_refused = self._has_refused or bool(refusal)
        said = self._text("thinking", reasoning(delta)) + self._text("text", content_of(delta) + refusal)
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            if isinstance(call, dict):
                said += self._call(call)
        return said

    def _text(self, kind: str, words: str) -> bytes:
        if not words:
            return b""
        opened = b""
        if self._open != kind:
            block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            opened = self._close() + self._start(block)
        return opened + self._piece({"type": f"{kind}_delta", kind: words})

    def _call(self, call: Mapping[str, Any]) -> bytes:
        """Return the events of a piece of a call: its head opens a block, and arguments follow."""
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        index = call.get("index")
        index = index if isinstance(index, int) else self._current
        given_id, name = word(call, "id"), word(function, "name")
        if given_id and name and self._calls.get(index, given_id) != given_id:
            index = len(self._calls)  # some servers give every call the same index
        opened = b""
        if index not in self._calls:
            call_id = given_id or new_call_id()
            self._calls[index], self._current = call_id, index
            opened = self._close() + self._start({"type": "tool_use", "id": call_id, "name": name, "input": {}})
        elif index != self._current or self._open != "tool_use":
            raise StreamInterrupted("the upstream mixed the pieces of several calls, which a message cannot say")
        arguments = word(function, "arguments")
        return opened + (self._piece({"type": "input_json_delta", "partial_json": arguments}) if arguments else b"")

    def _start(self, block: Mapping[str, Any]) -> bytes:
        self._open = str(block["type"])
        self._blocks += 1
        return _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _piece(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _close(self) -> bytes:
        """End the block that is open, if one is."""
        if self._open is None:
            return b""
        kind, self._open = self._open, None
        # Clients send thoughts back with a signature; there is nothing to sign.
        signed = self._piece({"type": "signature_delta", "signature": ""}) if kind == "thinking" else b""
        return signed + _event("content_block_stop", index=self._blocks - 1)


def _event(kind: str, **data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **data}) + b"\n\n"
