"""Texts that are turned into vectors, and what a model says of its vectors: plain data, no mlx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

# Short texts share a pass: the pool grants so many tokens where a request has them, even if none of its texts does.
SHARED_TOKENS = 512


class Pooling(Enum):
    """How the hidden states of a text's tokens become one vector."""

    MEAN = "mean"
    FIRST = "first"  # the first token's, which encoders call [CLS]
    LAST = "last"


@dataclass(frozen=True, slots=True)
class VectorFacts:
    """What vectors a model makes. All have unit length."""

    dimensions: int
    pooling: Pooling
    shorter: Sequence[int] = ()  # other lengths that the model was trained for (Matryoshka)
    is_assumed: bool = False  # nothing says how the model pools; the mean is a guess


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts, or tokens that no tokenizer touches, as the client asked for their vectors."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None  # None: all that the model makes
    truncate: bool = False  # a text over the context is cut instead of refused


@dataclass(frozen=True, slots=True)
class PreparedInputs:
    """Tokenized and length-checked texts, bound to no engine: they outlive a reload of their model."""

    rows: tuple[tuple[int, ...], ...]  # none is empty
    dimensions: int

    @property
    def total_tokens(self) -> int:
        """All tokens of all texts."""
        return sum(map(len, self.rows))

    @property
    def prefill_tokens(self) -> int:
        """What is granted for them: the longest text, or the short ones that may share a pass."""
        return max(*map(len, self.rows), min(self.total_tokens, SHARED_TOKENS))

    @property
    def final_tokens(self) -> int:
        """The same: nothing is generated."""
        return self.prefill_tokens


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of all texts in their order, each as little-endian float32; comes once, before `Finished`."""

    sequence_id: int
    vectors: tuple[bytes, ...]
