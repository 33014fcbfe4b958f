"""One answer of a chat as it grows: text, reasoning, calls with their ids, logprobs. Knows no wire shape but ids."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

import orjson

from mlxd.engine.base import Delta, Finished, FinishReason, TextKind
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.tool import CallPiece


@dataclass(slots=True)
class NumberedCall:
    """A call as it grows, with what clients know it by."""

    index: int
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """What has been written of its arguments."""
        return "".join(self.pieces)


@dataclass(slots=True)
class ChatAnswer:
    """All that one answer has said so far."""

    pieces: dict[TextKind, list[str]] = field(default_factory=dict)
    calls: list[NumberedCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the content's tokens
    reasoning_tokens: int = 0
    _tokens: int = 0
    finished: Finished | None = None

    def take(self, delta: Delta) -> list[tuple[NumberedCall, CallPiece]]:
        """Add *delta*, and return its pieces of calls, each with the call that it is a piece of."""
        if delta.kind is TextKind.REASONING:
            self.reasoning_tokens += delta.completion_tokens - self._tokens
        self._tokens = delta.completion_tokens
        self.pieces.setdefault(delta.kind, []).append(delta.text)
        if delta.kind is TextKind.CONTENT:
            self.logprobs += delta.logprobs
        return [(self._take_call(piece), piece) for piece in delta.calls]

    def _take_call(self, piece: CallPiece) -> NumberedCall:
        if piece.name is not None:
            self.calls.append(NumberedCall(len(self.calls), f"call_{uuid.uuid4().hex[:24]}", piece.name))
        self.calls[-1].pieces.append(piece.arguments)
        return self.calls[-1]

    def text(self, kind: TextKind) -> str:
        """Return the text of one kind."""
        return "".join(self.pieces.get(kind, ()))

    @property
    def content(self) -> str | None:
        """The text of the message; None where it is calls alone."""
        return self.text(TextKind.CONTENT) or (None if self.calls else "")

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for the end; an answer that was cut off while it called is cut off."""
        if self.finished is None:
            raise RuntimeError("the answer goes on")
        if self.calls and self.finished.reason is FinishReason.STOP:
            return "tool_calls"
        return self.finished.reason.value


# In an object under this key stand arguments that are none: so Anthropic's documentation of streamed tools has it.
INVALID = "INVALID_JSON"


def is_object(arguments: str) -> bool:
    """Whether the arguments of a call are a JSON object: a model may fail to write one, or be cut off in it."""
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False
