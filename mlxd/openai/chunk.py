"""The bytes of streams and the parts of answers, in OpenAI's shapes. Pure: no I/O.

A chunk is a head and a tail that are formatted once per stream, with one JSON string in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

import mlxd
from mlxd.engine.base import Finished, TextKind
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.tool import CallPiece
from mlxd.http.answer import NumberedCall
from mlxd.openai.custom_tool import custom_input
from mlxd.openai.logprob import chat_logprobs


@dataclass(frozen=True, slots=True)
class CallShape:
    """How a client knows the calls of its answer.

    Attributes:
        uses_functions: a call is a `function_call`, as before there were tools.
        custom: the names of custom tools, whose input is one text.
    """

    uses_functions: bool = False
    custom: frozenset[str] = frozenset()


FUNCTION_TOOLS = CallShape()
DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"mlxd-{mlxd.__version__}"


def usage_body(ends: Sequence[Finished], n: int, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Return `usage` of an answer: *ends* of all its sequences, of which *n* after each other share a prompt."""
    prompt = sum(end.usage.prompt_tokens for end in ends[::n])
    completion = sum(end.usage.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(end.usage.cached_tokens for end in ends[::n])},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def header(answer_id: str, kind: str, created_s: int, model: str) -> dict[str, Any]:
    """Return the members that every answer and every chunk begins with."""
    return {
        "id": answer_id,
        "object": kind,
        "created": created_s,
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


class _Chunks:
    """What the two kinds of stream share: the head, the usage member, the last chunk."""

    def __init__(self, members: Mapping[str, Any], *, include_usage: bool) -> None:
        """Take the members of `header`; with *include_usage* each chunk has `usage`, null until the last."""
        self._head = b"data: " + orjson.dumps(members)[:-1] + b',"choices":['
        self._tail = (b'],"usage":null}' if include_usage else b"]}") + b"\n\n"

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """Return the chunk without choices that ends a stream with `include_usage`."""
        return self._head + b'],"usage":' + orjson.dumps(usage) + b"}\n\n"


class ChatChunks(_Chunks):
    """The chunks of one choice of a /v1/chat/completions stream."""

    def __init__(self, members: Mapping[str, Any], index: int, *, include_usage: bool, calls: CallShape) -> None:
        """Format all that does not change from chunk to chunk of choice *index*."""
        super().__init__(members, include_usage=include_usage)
        self._shape = calls
        self._open_custom: NumberedCall | None = None  # its input is told when all of it is there
        self._unfinished = b',"finish_reason":null}' + self._tail
        self._choice = self._head + b'{"index":%d,"delta":{' % index
        self._starts = {
            TextKind.CONTENT: self._choice + b'"content":',
            TextKind.REASONING: self._choice + b'"reasoning_content":',
        }
        self._end = b'},"logprobs":null' + self._unfinished

    def role(self) -> bytes:
        """Return the first chunk."""
        return self._choice + b'"role":"assistant","content":"","refusal":null' + self._end

    def text(self, kind: TextKind, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Return a chunk with new text, and what the model thought of its tokens."""
        if not logprobs:
            return self._starts[kind] + orjson.dumps(text) + self._end
        thought = b'},"logprobs":' + orjson.dumps(chat_logprobs(logprobs))
        return self._starts[kind] + orjson.dumps(text) + thought + self._unfinished

    def call(self, call: NumberedCall, piece: CallPiece) -> bytes:
        """Return the chunks of a piece of a call: who is called, where it is the first, and with what."""
        if self._shape.uses_functions:
            return self._function_call(call, piece)
        if call.name in self._shape.custom:
            return self._custom_call(call, piece)
        parts: list[dict[str, Any]] = []
        if piece.name is not None:
            function = {"name": call.name, "arguments": ""}
            parts.append({"index": call.index, "id": call.id, "type": "function", "function": function})
        if piece.arguments:
            parts.append({"index": call.index, "function": {"arguments": piece.arguments}})
        return self._tool_calls(parts)

    def _tool_calls(self, parts: Sequence[Mapping[str, Any]]) -> bytes:
        start = self._choice + b'"tool_calls":['
        return b"".join(start + orjson.dumps(part) + b"]" + self._end for part in parts)

    def _custom_call(self, call: NumberedCall, piece: CallPiece) -> bytes:
        begun = b""
        if piece.name is not None:
            self._open_custom = call
            custom = {"name": call.name, "input": ""}
            begun = self._tool_calls([{"index": call.index, "id": call.id, "type": "custom", "custom": custom}])
        return begun + (self._close_custom() if piece.is_last else b"")

    def _close_custom(self) -> bytes:
        call, self._open_custom = self._open_custom, None
        if call is None:
            return b""
        return self._tool_calls([{"index": call.index, "custom": {"input": custom_input(call.arguments)}}])

    def _function_call(self, call: NumberedCall, piece: CallPiece) -> bytes:
        part = {"arguments": piece.arguments}
        if piece.name is not None:
            part = {"name": call.name, **part}
        return self._choice + b'"function_call":' + orjson.dumps(part) + self._end

    def finish(self, reason: str) -> bytes:
        """Return the chunk with the finish reason."""
        end = self._choice + b'},"logprobs":null,"finish_reason":' + orjson.dumps(reason) + b"}" + self._tail
        return self._close_custom() + end


def call_members(calls: Sequence[NumberedCall], shape: CallShape) -> dict[str, Any]:
    """Return the member of a whole message that holds its calls; none where there are none."""
    if not calls:
        return {}
    if shape.uses_functions:
        return {"function_call": {"name": calls[0].name, "arguments": calls[0].arguments}}
    return {"tool_calls": [_call_body(call, shape) for call in calls]}


def _call_body(call: NumberedCall, shape: CallShape) -> dict[str, Any]:
    if call.name in shape.custom:
        custom = {"name": call.name, "input": custom_input(call.arguments)}
        return {"id": call.id, "type": "custom", "custom": custom}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


class CompletionChunks(_Chunks):
    """The chunks of one /v1/completions stream; its text is the text of all kinds."""

    def text(self, index: int, text: str, logprobs: Mapping[str, Any] | None = None) -> bytes:
        """Return a chunk with new text of choice *index*."""
        return self._choice(index, orjson.dumps(text), orjson.dumps(logprobs), b"null")

    def finish(self, index: int, reason: str) -> bytes:
        """Return the chunk with the finish reason of choice *index*."""
        return self._choice(index, b'""', b"null", orjson.dumps(reason))

    def _choice(self, index: int, text: bytes, logprobs: bytes, reason: bytes) -> bytes:
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}' % (index, text, logprobs, reason)
        return self._head + choice + self._tail
