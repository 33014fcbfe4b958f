"""Texts that `FakeEngine` turns into made-up vectors, one text in a pass of its device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from mlxd.engine.base import EngineFacts, Finished, FinishReason, Listener, SequenceEvent, Usage
from mlxd.engine.inputs import check_dimensions
from mlxd.engine.vector import Embedded, EmbeddingRequest, PreparedInputs
from mlxd.protocol.errors import ContextLengthExceeded, InvalidRequest


@dataclass
class Job:
    """One list of texts."""

    number: int
    listener: Listener
    inputs: PreparedInputs
    paused: bool = False
    vectors: list[bytes] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """What the device holds memory for."""
        return 0 if self.paused else len(self.inputs.rows[len(self.vectors)])

    def make(self, posts: list[tuple[Listener, SequenceEvent]]) -> bool:
        """Make the next vector; tell whether it was the last."""
        self.vectors.append(made_up_vector(self.inputs.rows[len(self.vectors)], self.inputs.dimensions))
        if len(self.vectors) < len(self.inputs.rows):
            return False
        posts.append((self.listener, Embedded(self.number, tuple(self.vectors))))
        posts.append((self.listener, self.end(FinishReason.STOP)))
        return True

    def end(self, reason: FinishReason) -> Finished:
        """Return the last event."""
        return Finished(self.number, reason, Usage(self.inputs.total_tokens, 0, 0))


def prepare(facts: EngineFacts, request: EmbeddingRequest) -> PreparedInputs:
    """Take every character for a token."""
    if facts.vectors is None:
        raise InvalidRequest("it makes no vectors", param="model")
    dimensions = check_dimensions("fake", facts.vectors, request.dimensions)
    rows = []
    for given in request.inputs:
        tokens = tuple(map(ord, given)) if isinstance(given, str) else given
        if not tokens or max(tokens) >= facts.vocab_size:
            raise InvalidRequest(f"a token is outside 0..{facts.vocab_size - 1}, or there is none", param="input")
        if len(tokens) > facts.context_length and not request.truncate:
            raise ContextLengthExceeded(
                f"{len(tokens)} tokens are more than the context of {facts.context_length}", param="input"
            )
        rows.append(tokens[: facts.context_length])
    return PreparedInputs(tuple(rows), dimensions)


def made_up_vector(tokens: tuple[int, ...], dimensions: int) -> bytes:
    """Return a vector of unit length that is a function of the tokens."""
    seed = int.from_bytes(hashlib.sha256(repr(tokens).encode()).digest()[:8])
    vector = np.random.default_rng(seed).standard_normal(dimensions)
    return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()
