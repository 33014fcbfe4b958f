"""The interface of what makes tokens for `TextModel`: rows go in, and each step hands out what was made.

A decoder knows no grants, no text and no events. Its rows are known by a uid that it gives out and never uses twice.
An exception from `step`, `extract` or `remove` leaves it in an unknown state: close it and make another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlxd.engine.base import FinishReason
from mlxd.engine.kv import Snapshot

# Given what prompts that are processed side by side still need, returns the most tokens of each in the next step.
ChunkTokens = Callable[[list[int]], int]


@dataclass(frozen=True, slots=True)
class Kept:
    """KV of one row as an unbatched cache, and the tokens that are in it."""

    cache: list[Any]
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row that is to be continued.

    Attributes:
        tokens: all that the model is to see; the KV of the first `known` of them is in `cache`.
        known: less than all: the model needs one to continue from.
        cache: unbatched; a decoder copies what it changes.
        kv_tokens: the most tokens that it may hold until `Decoder.grant` says more.
        max_tokens: how many to make, at least 1.
        sampler: takes logprobs [rows, vocabulary], float32, and returns a token per row.
        processors: each takes all tokens so far and logits [1, vocabulary], float32, and returns the logits.
        cuts: how many tokens are to be in its KV at the end of some step, which `Decoder.snapshot` may look at.
    """

    tokens: Sequence[int]
    known: int
    cache: list[Any] | None
    kv_tokens: int
    max_tokens: int
    sampler: Any
    processors: Sequence[Any] = ()
    cuts: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class Prefilled:
    """A row has come further with its prompt: *done* tokens since it was inserted."""

    uid: int
    done: int
    is_done: bool  # its first token comes with the next step


@dataclass(frozen=True, slots=True)
class Made:
    """New tokens of a row, in order, at least one.

    Attributes:
        uid: the row.
        tokens: their KV is in the row's cache.
        logprobs: of each token [vocabulary], float32, already evaluated: any operation of MLX on them waits for the
            step in flight.
        end: why the row is out of the decoder; None while it continues.
        kept: the KV of a row that has ended.
    """

    uid: int
    tokens: tuple[int, ...]
    logprobs: tuple[Any, ...]
    end: FinishReason | None = None
    kept: Kept | None = None


class Decoder(Protocol):
    """Makes tokens for the rows of one model."""

    def insert(self, entry: Entry) -> int:
        """Let a row in from the next step on; return its uid.

        Raises:
            ValueError: it has no token to continue from, or none to make.
        """

    def step(self, chunk_tokens: ChunkTokens) -> tuple[list[Prefilled], list[Made]]:
        """Make the next tokens of all rows whose prompts are done, and process a chunk of the prompts that are not."""

    def grant(self, uid: int, kv_tokens: int) -> None:
        """Let a row hold more tokens; a uid that is not in is ignored."""

    def add_cut(self, uid: int, tokens: int) -> None:
        """Add one of `Entry.cuts` to a prompt that has not come so far."""

    def snapshot(self, uid: int) -> Snapshot:
        """Return a copy of what the layers of a row that has KV keep and that cannot be cut."""

    def extract(self, uid: int) -> Kept:
        """Return a copy of the KV of a row that has some."""

    def remove(self, uids: Sequence[int], *, keep: bool = False) -> dict[int, Kept]:
        """Take rows out, unless they are not in; with *keep*, return the KV of those that have some."""

    def close(self) -> None:
        """Let go of everything of MLX; only `close` may follow."""
