"""One sequence on the device: its tokens, its grant, its text. Knows no batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mlxd.engine.base import Listener, Submit, Usage
from mlxd.engine.output import Output

# A row asks for a larger grant when fewer tokens than this remain of it.
KV_LOW_TOKENS = 128
_NEVER = 2**62


class Phase(Enum):
    """Where a row is."""

    PREFILL = "prefill"
    DECODE = "decode"
    PAUSED = "paused"  # out of the batch, without KV


@dataclass(slots=True, eq=False)
class Row:
    """A sequence from its submit to its end."""

    submit: Submit
    listener: Listener
    output: Output
    sampler: Any
    processors: list[Any]
    kv_tokens: int  # the grant
    tokens: list[int]  # prompt and generated
    phase: Phase = Phase.PREFILL
    uid: int = -1  # the generator's name for it
    generated: int = 0
    cached_tokens: int = 0  # of the prompt, at its first prefill
    inserted_tokens: int = 0  # whose KV it came into the batch with
    prefilled_tokens: int = 0
    is_low_posted: bool = False  # for this grant
    check_at_tokens: int = field(default=_NEVER)  # the length at which the grant matters next

    @property
    def sequence_id(self) -> int:
        """The pool's name for it."""
        return self.submit.sequence_id

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.submit.prompt.tokens)

    @property
    def unprocessed_tokens(self) -> int:
        """How many of its tokens have no KV yet."""
        return len(self.tokens) - self.prefilled_tokens

    @property
    def remaining_tokens(self) -> int:
        """How many tokens it may still generate."""
        return self.submit.prompt.max_tokens - self.generated

    @property
    def usage(self) -> Usage:
        """What it used until now."""
        return Usage(self.prompt_tokens, self.cached_tokens, self.generated)

    def set_grant(self, kv_tokens: int) -> None:
        """Let it grow to *kv_tokens*."""
        self.kv_tokens = kv_tokens
        self.is_low_posted = False
        self._set_check()

    def set_low_posted(self) -> None:
        """Note that more was asked for; the border is what matters next."""
        self.is_low_posted = True
        self._set_check()

    def _set_check(self) -> None:
        if self.prompt_tokens + self.submit.prompt.max_tokens <= self.kv_tokens:
            self.check_at_tokens = _NEVER
        else:
            self.check_at_tokens = self.kv_tokens - (0 if self.is_low_posted else KV_LOW_TOKENS - 1)
