"""The parts that answers of chats and of completions share, in OpenAI's shapes. Pure: no I/O.

A chunk is a head and a tail that are formatted once per stream, with one JSON string in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

import mlxd
from mlxd.engine.base import Finished


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
_DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"mlxd-{mlxd.__version__}"


def usage_body(ends: Sequence[Finished], n: int, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Return `usage` of an answer: *ends* of all its sequences, of which *n* after each other share a prompt."""
    prompt = sum(end.usage.prompt_tokens for end in ends[::n])
    completion = sum(end.usage.completion_tokens for end in ends)
    written = [end.usage.written_tokens for end in ends[::n] if end.usage.written_tokens is not None]
    reasoning_tokens += sum(end.usage.reasoning_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(end.usage.cached_tokens for end in ends[::n])}
        | ({"cache_write_tokens": sum(written)} if written else {}),
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


class Chunks:
    """What the two kinds of answer share: its first members, the head and the tail of a chunk, the end."""

    def __init__(
        self,
        answer_id: str,
        kind: str,
        chunk_kind: str,
        created_s: int,
        model: str,
        *,
        include_usage: bool,
        is_ours: bool = True,
    ) -> None:
        """Format what does not change; with *include_usage* each chunk has `usage`, null until the last.

        An answer that *is_ours* has our fingerprint.
        """
        fingerprint = {"system_fingerprint": FINGERPRINT} if is_ours else {}
        self.members = {"id": answer_id, "object": kind, "created": created_s, "model": model, **fingerprint}
        self.head = b"data: " + orjson.dumps(self.members | {"object": chunk_kind})[:-1] + b',"choices":['
        self.tail = (b'],"usage":null}' if include_usage else b"]}") + b"\n\n"
        self._include_usage = include_usage

    def end(self, usage: Mapping[str, Any]) -> bytes:
        """Return the last bytes of a stream: a chunk without choices where usage is wanted, and [DONE]."""
        if not self._include_usage:
            return _DONE
        return self.head + b'],"usage":' + orjson.dumps(usage) + b"}\n\n" + _DONE
