"""One sequence of `FakeEngine`, and the text that it makes up."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from mlxd.engine.base import Listener, Submit
from mlxd.engine.logprob import TokenLogprob

# engine.base: a row asks for more when fewer tokens than this remain of its grant.
LOW_TOKENS = 128

# Every answer is a piece of this; where it begins depends on the prompt and the seed.
_LETTERS = "".join(chr(ord("a") + (position * 2654435761 >> 5) % 26) for position in range(60_000))


def answer_start(prompt_tokens: tuple[int, ...], seed: int | None) -> int:
    """Return where the answer begins in `_LETTERS`."""
    return zlib.crc32(f"{prompt_tokens}{seed}".encode()) % 10_007


def answer_text(prompt: str, seed: int | None, tokens: int) -> str:
    """Return the answer of an unhurried run."""
    start = answer_start(tuple(ord(letter) for letter in prompt), seed)
    return _LETTERS[start : start + tokens]


def made_up_logprob(token: int, has_one: bool = True) -> TokenLogprob:
    """Return what the fake says of a letter; the first token of a prompt has no logprob."""
    return TokenLogprob(token, chr(token).encode(), -0.5 if has_one else None)


@dataclass(slots=True)
class Row:
    """One sequence on the fake device."""

    submit: Submit
    listener: Listener
    granted_tokens: int
    checkpoint_bytes: int  # all that it may keep, and does
    start: int  # of its answer
    generated: int = 0
    prefilled: bool = False
    asked: bool = False  # KvLow was posted for this grant
    paused: bool = False
    cached_tokens: int = 0
    scored: bool = False  # PromptScored was posted
    stopped_by: str | None = None
    pending: str = ""  # held back because it may be the beginning of a stop string

    @property
    def tokens(self) -> int:
        """Prompt and generated tokens."""
        return len(self.submit.prompt.tokens) + self.generated

    @property
    def final_tokens(self) -> int:
        """Its greatest length."""
        return len(self.submit.prompt.tokens) + self.submit.prompt.max_tokens

    def logprobs(self, text: str) -> tuple[TokenLogprob, ...]:
        """Return the logprobs of *text*, whose letters are its tokens, if they were asked for."""
        if self.submit.logprobs is None:
            return ()
        return tuple(made_up_logprob(ord(letter)) for letter in text)

    def make(self, most_tokens: int) -> tuple[str, bool]:
        """Make up to so many tokens within the grant; return the text that may go out, and whether a stop ended it."""
        end = self.generated + min(most_tokens, self.granted_tokens - self.tokens, self.final_tokens - self.tokens)
        text = self.pending + _LETTERS[self.start + self.generated : self.start + end]
        self.generated = end
        found = [text.index(stop) for stop in self.submit.stop if stop in text]
        if found:
            self.stopped_by = next(stop for stop in self.submit.stop if text.startswith(stop, min(found)))
            return text[: min(found)], True
        last = self.tokens >= self.final_tokens
        held = 0 if last else max((_overlap(text, stop) for stop in self.submit.stop), default=0)
        self.pending = text[len(text) - held :]
        return text[: len(text) - held], False


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of *text* that *stop* begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
