"""Log-probabilities of tokens, as they leave the engine: plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there. `raw` are its bytes, which may be a part of a character."""

    token: int
    raw: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the answer, or of the prompt, and what was thought of it.

    Attributes:
        token: its id.
        raw: its bytes, which may be a part of a character.
        logprob: natural logarithm of its probability before temperature and top-p; None for a prompt's first token.
        top: the most likely tokens at its place, likeliest first.
    """

    token: int
    raw: bytes
    logprob: float | None
    top: tuple[Alternative, ...] = ()
