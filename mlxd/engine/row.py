"""One sequence on the device: its tokens, its grant, its text. Knows no batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mlxd.engine.base import Delta, Listener, SequenceEvent, Submit, TextKind, Usage
from mlxd.engine.grammar import Grammar
from mlxd.engine.kv import Snapshot
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.output import Output
from mlxd.engine.sampling import Guard
from mlxd.engine.thinking import ThinkingBudget
from mlxd.engine.tool_reader import Piece

# A row asks for a larger grant when fewer tokens than this remain of it.
KV_LOW_TOKENS = 128
_NEVER = 2**62
NO_UID = -1  # no row of a decoder has it

PostEvent = Callable[[Listener, SequenceEvent], None]


class Phase(Enum):
    """Where a row is."""

    HELD = "held"  # another row processes what their prompts have in common
    SCORING = "scoring"  # its prompt is read for its logprobs
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
    processors: list[Any]  # the grammar's is not among them
    kv_tokens: int = field(init=False)  # the grant
    checkpoint_bytes: int = field(init=False)  # and what it may keep for the prompt cache, until it pauses
    tokens: list[int] = field(init=False)  # prompt and generated
    phase: Phase = Phase.PREFILL
    uid: int = NO_UID  # the decoder's name for it
    generated: int = 0
    cached_tokens: int = 0  # of the prompt, at its first prefill
    inserted_tokens: int = 0  # whose KV it came into the batch with
    prefilled_tokens: int = 0
    leader: Row | None = None  # while it is held: the row that it waits for,
    awaited: int = 0  # and for how many tokens
    checkpoints: set[int] = field(default_factory=set)  # after how many tokens its KV is to be kept,
    snapshots: dict[int, Snapshot] = field(default_factory=dict)  # and what has been
    guards: list[Guard] = field(default_factory=list)  # the processors of its present stay in the batch
    unreported: list[TokenLogprob] = field(default_factory=list)  # of tokens whose text has not come out
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # once they have been posted
    is_low_posted: bool = False  # for this grant
    check_at_tokens: int = field(default=_NEVER)  # the length at which the grant matters next

    def __post_init__(self) -> None:
        """Begin with what was submitted."""
        self.kv_tokens, self.checkpoint_bytes = self.submit.kv_tokens, self.submit.checkpoint_bytes
        self.tokens = list(self.submit.prompt.tokens)

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

    @property
    def is_scored(self) -> bool:
        """Whether the logprobs of its prompt have been posted."""
        return bool(self.prompt_logprobs)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing has been generated for it."""
        return self.generated == 0

    @property
    def failure(self) -> Exception | None:
        """What its sampler or one of its processors has raised."""
        guards = [self.sampler, *self.guards] if isinstance(self.sampler, Guard) else self.guards
        return next((guard.failure for guard in guards if guard.failure is not None), None)

    def enter_batch(self, tokenizer: Any) -> Sequence[Any]:
        """Return the logits processors for a stay in the batch that begins now.

        Raises:
            InvalidRequest: the grammar is too large for what has been generated.
        """
        prompt, budget_tokens = self.submit.prompt, self.submit.thinking_budget
        generated = self.tokens[self.prompt_tokens :]
        is_thinking = prompt.initial_kind is TextKind.REASONING
        processors = list(self.processors)
        if isinstance(prompt.grammar, Grammar):
            processors.append(prompt.grammar.processor(generated, is_thinking=is_thinking))
        if budget_tokens is not None and tokenizer.has_thinking:
            processors.append(ThinkingBudget(tokenizer, budget_tokens, generated, is_thinking=is_thinking))
        self.guards = [Guard(processor, lambda _, logits: logits) for processor in processors]
        return self.guards

    def push(self, token: int, logprob: TokenLogprob | None) -> list[Delta]:
        """Return what *token* makes known; its logprob goes out with the text that it is in."""
        pieces = self.output.push(token)
        if logprob is not None and not self.output.stopped:
            self.unreported.append(logprob)
        return [self._delta(piece) for piece in pieces]

    def flush(self) -> list[Delta]:
        """Return what was held back until the end."""
        deltas = [self._delta(piece) for piece in self.output.finish()]
        if self.unreported and not self.output.stopped:  # of tokens that have no text of their own
            deltas.append(Delta(self.sequence_id, "", TextKind.CONTENT, self.generated, tuple(self.unreported)))
        return deltas

    def _delta(self, piece: Piece) -> Delta:
        logprobs = tuple(self.unreported) if piece.text else ()
        if piece.text:
            self.unreported.clear()
        return Delta(self.sequence_id, piece.text, piece.kind, self.generated, logprobs, piece.calls)

    def hold(self, leader: Row, awaited: int) -> None:
        """Wait until *leader* has processed so many tokens."""
        self.phase = Phase.HELD
        self.leader, self.awaited = leader, awaited

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


class Rows(dict[int, Row]):
    """All rows of one model by sequence id, oldest first."""

    def scorer_of(self, row: Row) -> Row | None:
        """Return a row that reads the same prompt for its logprobs, for *row* to wait for."""
        same = (other for other in self.values() if other is not row and other.submit.prompt is row.submit.prompt)
        return next((other for other in same if other.phase is Phase.SCORING), None)

    def held_by(self, leader: Row) -> list[Row]:
        """Return the rows that wait for *leader*."""
        return [row for row in self.values() if row.phase is Phase.HELD and row.leader is leader]
