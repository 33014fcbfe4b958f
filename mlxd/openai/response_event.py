"""A response as it grows: its items, and the events of its stream, in OpenAI's shapes. Pure: no I/O.

A whole answer is made by the same code as a stream, whose events are then not sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.engine.base import Delta, Finished, FinishReason, TextKind, Usage
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.tool import CallPiece
from mlxd.http import errors
from mlxd.http.sealed import sealed
from mlxd.openai.logprob import chat_logprobs
from mlxd.openai.response_call import GrowingCall
from mlxd.openai.response_item import new_id
from mlxd.openai.tool_name import ToolNames
from mlxd.protocol.errors import MlxdError, RequestCancelled

_EVENT_OF = {TextKind.CONTENT: "response.output_text", TextKind.REASONING: "response.reasoning_text"}
# What a call says in a stream of its own; the others are sent whole.
_SAID_OF = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}
_TOO_MANY_REQUESTS = 429


class ResponseEvents:
    """One response. The first events of its stream come with the first that says something, unless told to `begin`."""

    def __init__(
        self,
        response_id: str,
        created_s: int,
        model: str,
        repeated: Mapping[str, Any],
        names: ToolNames,
        *,
        has_logprobs: bool,
        seals_thoughts: bool = False,
    ) -> None:
        """Take what does not change.

        Args:
            response_id: of the response.
            created_s: when it was asked for.
            model: as the client calls it.
            repeated: the members that repeat the request.
            names: of the tools that may be called.
            has_logprobs: whether they are shown beside the text.
            seals_thoughts: whether reasoning items have `encrypted_content`.
        """
        self.id = response_id
        self.has_begun = False
        self._members = {"id": response_id, "object": "response", "created_at": created_s, "model": model, **repeated}
        self._names = names
        self._has_logprobs = has_logprobs
        self._seals_thoughts = seals_thoughts
        self._number = 0  # of the next event
        self._items: list[dict[str, Any]] = []
        self._open: TextKind | None = None  # of the last item, while it grows
        self._growing: GrowingCall | None = None  # the last item, while it is a call that grows
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._tokens = 0
        self._reasoning_tokens = 0
        self._end: dict[str, Any] = {"status": "in_progress"}

    @property
    def has_ended(self) -> bool:
        """Whether its last event was made."""
        return bool(self._end["status"] != "in_progress")

    def body(self) -> dict[str, Any]:
        """Return the response as it is now."""
        unset = {"completed_at": None, "error": None, "incomplete_details": None, "usage": None}
        return {**self._members, **unset, "output": self._items_now(), **self._end}

    def begin(self) -> bytes:
        """Return the first events, unless they have been."""
        if self.has_begun:
            return b""
        self.has_begun = True
        body = self.body()
        return self._event("response.created", response=body) + self._event("response.in_progress", response=body)

    def keep_alive(self) -> bytes:
        """Return an event that says nothing new, for clients that wait for one; none where none may come."""
        if not self.has_begun or self.has_ended:
            return b""
        return self._event("response.in_progress", response=self.body())

    def take(self, delta: Delta) -> bytes:
        """Add *delta* and return its events."""
        if delta.kind is TextKind.REASONING:
            self._reasoning_tokens += delta.completion_tokens - self._tokens
        self._tokens = delta.completion_tokens
        if delta.kind is TextKind.TOOL:
            return b"".join(self._call(piece) for piece in delta.calls)
        logprobs = delta.logprobs if self._has_logprobs and delta.kind is TextKind.CONTENT else ()
        if not delta.text and not logprobs:
            return b""
        data = self.begin()
        if self._open is not delta.kind:
            data += self._close("completed") + self._start(delta.kind)
        self._pieces.append(delta.text)
        self._logprobs += logprobs
        more = {"logprobs": _entries(logprobs)} if delta.kind is TextKind.CONTENT else {}
        return data + self._event(f"{_EVENT_OF[delta.kind]}.delta", **self._place(), delta=delta.text, **more)

    def finish(self, finished: Finished, now_s: int) -> bytes:
        """End the response as the model ended it, and return the last events."""
        is_whole = finished.reason is not FinishReason.LENGTH
        data = self.begin() + self._close("completed" if is_whole else "incomplete")
        if is_whole:
            self._end = {"status": "completed", "completed_at": now_s}
        else:
            self._end = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        self._end["usage"] = _usage(finished.usage, self._reasoning_tokens)
        return data + self._event(f"response.{self._end['status']}", response=self.body())

    def fail(self, error: MlxdError) -> bytes:
        """End the response, which has begun, by an error, and return the last events.

        The last is `response.failed`, with the envelope of errors besides: the official client raises on that alone.
        """
        data = self._close("incomplete")
        shown = errors.detail(error)
        if isinstance(error, RequestCancelled):
            self._end = {"status": "cancelled"}
        else:
            code = "rate_limit_exceeded" if errors.status_of(error) == _TOO_MANY_REQUESTS else "server_error"
            self._end = {"status": "failed", "error": {"code": code, "message": shown["message"]}}
        return data + self._event("response.failed", response=self.body(), error=shown)

    def _items_now(self) -> list[dict[str, Any]]:
        """Return the items, the one that grows with what it has by now."""
        if self._open is None:
            return self._items
        if self._growing is not None:
            return [*self._items[:-1], *self._growing.now()]
        return [*self._items[:-1], {**self._items[-1], "content": [self._part()]}]

    def _start(self, kind: TextKind) -> bytes:
        self._open, self._pieces, self._logprobs = kind, [], []
        if kind is TextKind.CONTENT:
            item = {"id": new_id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        else:
            item = {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": [], "content": []}
        self._items.append(item)
        added = self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)
        return added + self._event("response.content_part.added", **self._place(), part=self._part())

    def _close(self, status: str) -> bytes:
        """End the item that grows, if one does."""
        if self._open is None:
            return b""
        if self._growing is not None:
            data = self._close_call(self._growing, status)
        else:
            data = self._close_text(self._open, status)
        self._open = self._growing = None
        return data + self._event("response.output_item.done", output_index=len(self._items) - 1, item=self._items[-1])

    def _close_text(self, kind: TextKind, status: str) -> bytes:
        part, item = self._part(), self._items[-1]
        said = {"text": part["text"]}
        if kind is TextKind.CONTENT:
            said["logprobs"] = part["logprobs"]
        item["status"], item["content"] = status, [part]
        if self._seals_thoughts and kind is TextKind.REASONING:
            item["encrypted_content"] = sealed(part["text"])
        data = self._event(f"{_EVENT_OF[kind]}.done", **self._place(), **said)
        return data + self._event("response.content_part.done", **self._place(), part=part)

    def _part(self) -> dict[str, Any]:
        text = "".join(self._pieces)
        if self._open is TextKind.REASONING:
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": _entries(self._logprobs)}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}

    def _call(self, piece: CallPiece) -> bytes:
        data = b""
        if piece.name is not None:
            data = self.begin() + self._close("completed")
            self._open, self._growing = TextKind.TOOL, GrowingCall(self._names.callee(piece.name), new_id)
            self._items.append(self._growing.item)
            if self._growing.item["type"] in _SAID_OF:
                data += self._added(self._growing.item)
        if self._growing is not None and piece.arguments:
            data += self._said(self._growing.take(piece.arguments))
        return data + self._close("completed") if piece.is_last else data

    def _close_call(self, call: GrowingCall, status: str) -> bytes:
        is_streamed = call.item["type"] in _SAID_OF
        rest = call.finish(status)
        self._items[-1] = call.item
        if not is_streamed:
            return self._added({**call.item, "status": "in_progress"})
        name, kind = _SAID_OF[call.item["type"]]
        said = {"name": call.item["name"]} if name == "arguments" else {}
        done = {"item_id": call.item["id"], "output_index": len(self._items) - 1, **said, name: call.item[name]}
        return self._said(rest) + self._event(f"{kind}.done", **done)

    def _added(self, item: Mapping[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _said(self, text: str) -> bytes:
        """Return the event of a piece of what the call that grows says; none of no text."""
        if not text:
            return b""
        item = self._items[-1]
        place = {"item_id": item["id"], "output_index": len(self._items) - 1}
        return self._event(f"{_SAID_OF[item['type']][1]}.delta", **place, delta=text)

    def _event(self, kind: str, **data: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **data}
        self._number += 1
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _entries(logprobs: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = chat_logprobs(logprobs)["content"]
    return entries


def _usage(usage: Usage, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
