"""The bytes of streams and the parts of answers, in OpenAI's shapes. Pure: no I/O.

A chunk is a head and a tail that are formatted once per stream, with one JSON string in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

import mlxd
from mlxd.engine.base import FinishReason, TextKind, Usage

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"mlxd-{mlxd.__version__}"


def usage_body(usages: tuple[Usage, ...]) -> dict[str, Any]:
    """Return `usage` for all sequences of an answer."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
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

    def usage(self, usages: tuple[Usage, ...]) -> bytes:
        """Return the chunk without choices that ends a stream with `include_usage`."""
        return self._head + b'],"usage":' + orjson.dumps(usage_body(usages)) + b"}\n\n"


class ChatChunks(_Chunks):
    """The chunks of one /v1/chat/completions stream."""

    def __init__(self, members: Mapping[str, Any], *, include_usage: bool) -> None:
        """Format all that does not change from chunk to chunk."""
        super().__init__(members, include_usage=include_usage)
        unfinished = b'},"logprobs":null,"finish_reason":null}' + self._tail
        choice = self._head + b'{"index":0,"delta":{'
        self._starts = {
            # Tool text stays visible as content for as long as tool calls are not parsed.
            TextKind.CONTENT: choice + b'"content":',
            TextKind.TOOL: choice + b'"content":',
            TextKind.REASONING: choice + b'"reasoning_content":',
        }
        self._end = unfinished
        self._role = choice + b'"role":"assistant","content":"","refusal":null' + unfinished
        self._finish = choice + b'},"logprobs":null,"finish_reason":'

    def role(self) -> bytes:
        """Return the first chunk."""
        return self._role

    def text(self, kind: TextKind, text: str) -> bytes:
        """Return a chunk with new text."""
        return self._starts[kind] + orjson.dumps(text) + self._end

    def finish(self, reason: FinishReason) -> bytes:
        """Return the chunk with the finish reason."""
        return self._finish + orjson.dumps(reason.value) + b"}" + self._tail


class CompletionChunks(_Chunks):
    """The chunks of one /v1/completions stream; its text is the text of all kinds."""

    def text(self, index: int, text: str) -> bytes:
        """Return a chunk with new text of prompt *index*."""
        return self._choice(index, orjson.dumps(text), b"null")

    def finish(self, index: int, reason: FinishReason) -> bytes:
        """Return the chunk with the finish reason of prompt *index*."""
        return self._choice(index, b'""', orjson.dumps(reason.value))

    def _choice(self, index: int, text: bytes, reason: bytes) -> bytes:
        choice = b'{"index":%d,"text":%b,"logprobs":null,"finish_reason":%b}' % (index, text, reason)
        return self._head + choice + self._tail
