"""The one interface between events and what clients read; each API has its renderers beside its routes.

A renderer writes one answer from the events of `engine.base`, as they come, and does no I/O: the same one serves a
stream, a whole answer, and what an upstream of another protocol answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from mlxd.engine.base import AnswerEvent, GenerationRequest, Prefilling
from mlxd.engine.vector import EmbeddingRequest
from mlxd.protocol.errors import MlxdError


class Renderer(ABC):
    """Writes one answer in the shapes of an API: as a stream, piece by piece, or as a whole."""

    @abstractmethod
    def event(self, index: int, event: AnswerEvent) -> bytes:
        """Take the next event of sequence *index*; return what a stream says of it, which may be nothing."""

    def end(self) -> bytes:
        """Return the last bytes of a stream, after the `Finished` of all sequences."""
        return b""

    @abstractmethod
    def whole(self) -> bytes:
        """Return the whole answer as JSON, after the last event."""

    def fail(self, error: MlxdError) -> bytes:  # noqa: ARG002  (for those that have such an event)
        """Return the last bytes of a stream that breaks off; none where the API has no event but its envelope."""
        return b""

    def keep_alive(self) -> bytes:
        """Return what fills a silence of a stream that has begun; nothing where the route's own bytes do."""
        return b""

    def close(self) -> None:  # noqa: B027  (most have nothing to forget)
        """Forget the answer: its request is over, whatever came of it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a body asks of a model.

    Attributes:
        renderer: writes the answer.
        asked: one request per prompt; or one for vectors.
        n: answers per prompt, which share its prefill. With a seed the i-th answer has seed + i.
        only_counts: nothing is generated; a `Prefilling` says how many tokens the prompt has.
        fields: what the API calls fields that the engine calls as chats do.
    """

    renderer: Renderer
    asked: Sequence[GenerationRequest] | EmbeddingRequest
    n: int = 1
    only_counts: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)


class CountRenderer(Renderer):
    """Says how many tokens a prompt has."""

    def __init__(self, **members: str) -> None:
        """Take what stands before the number."""
        self._members: dict[str, str | int] = dict(members)

    def event(self, index: int, event: AnswerEvent) -> bytes:  # noqa: ARG002
        """Take the number."""
        if isinstance(event, Prefilling):
            self._members["input_tokens"] = event.total
        return b""

    def whole(self) -> bytes:
        """Return the number."""
        return orjson.dumps(self._members)
