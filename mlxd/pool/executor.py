"""Tells engines what sequences shall do and takes their events. What may be granted is decided elsewhere.

A reservation (`granted_tokens`) grows before the engine is told and shrinks only on the device's own word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mlxd.engine.base import (
    Delta,
    Engine,
    Failed,
    Finished,
    KvLow,
    Paused,
    Prefilling,
    PreparedPrompt,
    PromptScored,
    SequenceEvent,
    Submit,
)
from mlxd.engine.vector import Embedded, PreparedInputs
from mlxd.pool.lifecycle import ModelState
from mlxd.pool.resident import Sequence, SequenceState
from mlxd.pool.state import PoolState
from mlxd.protocol.errors import MlxdError, ModelUnloaded, OutOfMemory


class Executor:
    """The traffic between the pool's sequences and the engines."""

    def __init__(self, state: PoolState, pump: Callable[[], None], give_back: Callable[[str], None]) -> None:
        """Take the state, what to call when something may have become possible, and what gives idle memory back.

        *pump* is called in the middle of a device's pass and acts when all of the pass has been told.
        """
        self._state = state
        self._pump = pump
        self._give_back = give_back

    def start(self, sequence: Sequence) -> None:
        """Submit or resume the sequence with its first grant."""
        resident = sequence.resident
        if not _is_still_good(sequence):
            self.abort(
                sequence,
                ModelUnloaded(
                    f"{resident.id} was loaded again from other files or with other settings while the request waited",
                    retry_after_s=1,
                    hint="send the request again",
                ),
            )
            return
        engine = _engine(sequence)
        kv_tokens = sequence.first_grant_tokens
        was_paused = sequence.state is SequenceState.PAUSED
        listener = partial(self.take, sequence)
        if was_paused:
            engine.resume(sequence.number, kv_tokens)
        elif isinstance(sequence.prompt, PreparedInputs):
            engine.embed(sequence.number, sequence.prompt, kv_tokens, listener)
        else:
            engine.submit(_submit(sequence, sequence.prompt, kv_tokens), listener)
        sequence.state = SequenceState.RUNNING
        sequence.granted_tokens = kv_tokens
        sequence.wanted_tokens = None
        sequence.ticket.started = True
        self._state.tell_not_waiting(sequence.ticket)
        if was_paused:
            self._state.emit("sequence.resumed", resident.id, f"{_words(sequence)} goes on")
        else:
            resident.waiting.pop(sequence.number, None)
            resident.active[sequence.number] = sequence

    def grant(self, sequence: Sequence) -> None:
        """Give a running sequence the tokens that it asked for."""
        if sequence.wanted_tokens is not None:
            sequence.left_tokens = sequence.granted_tokens
            sequence.granted_tokens = sequence.wanted_tokens
            sequence.wanted_tokens = None
            _engine(sequence).grant(sequence.number, sequence.granted_tokens)

    def confirm_grant(self, sequence: Sequence) -> None:
        """Take it that the device has carried out the last grant: the row is among those of its new length."""
        sequence.left_tokens = 0
        self._pump()

    def pause(self, sequence: Sequence) -> None:
        """Tell a running sequence to give its KV back."""
        sequence.state = SequenceState.PAUSING
        sequence.wanted_tokens = None
        _engine(sequence).pause(sequence.number)

    def drop(self, sequence: Sequence) -> None:
        """End the sequence because nobody reads it any more."""
        if sequence.state is SequenceState.WAITING:
            sequence.end()
        elif sequence.state not in {SequenceState.ENDING, SequenceState.ENDED}:
            sequence.state = SequenceState.ENDING
            _engine(sequence).cancel(sequence.number)

    def abort(self, sequence: Sequence, error: MlxdError) -> None:
        """End the sequence with an error for its reader, who gets it at once."""
        sequence.events.put(error)
        self.drop(sequence)

    def take(self, sequence: Sequence, event: SequenceEvent) -> None:
        """Take what the device says of a sequence."""
        if isinstance(event, Delta):
            self._count(sequence, event.completion_tokens)
            if 0 < sequence.left_tokens < sequence.prompt.prefill_tokens + event.completion_tokens:
                self.confirm_grant(sequence)  # no row goes past a grant before it has been given the next
            sequence.events.put(event)
        elif isinstance(event, PromptScored):
            # A second attempt scores it again; its reader has that.
            if not sequence.is_scored:
                sequence.is_scored = True
                sequence.events.put(event)
        elif isinstance(event, Embedded):
            sequence.events.put(event)
        elif isinstance(event, Prefilling):
            # A resumed sequence prefills again; its reader is past that.
            if sequence.tokens == sequence.prompt.prefill_tokens:
                sequence.events.put(event)
        elif isinstance(event, KvLow):
            self._on_kv_low(sequence, event)
        elif isinstance(event, Paused):
            self._on_paused(sequence, event)
        else:
            self._on_end(sequence, event)

    def _count(self, sequence: Sequence, completion_tokens: int) -> None:
        made = completion_tokens - sequence.completion_tokens
        if made:
            sequence.completion_tokens = completion_tokens
            now_s = self._state.clock.now()
            sequence.resident.meter.add(made, now_s)
            self._state.meter.add(made, now_s)

    def _on_kv_low(self, sequence: Sequence, event: KvLow) -> None:
        if sequence.state is SequenceState.RUNNING and event.kv_tokens == sequence.granted_tokens:
            sequence.wanted_tokens = sequence.next_grant_tokens
            self._pump()

    def _on_paused(self, sequence: Sequence, event: Paused) -> None:
        sequence.hold_nothing()
        sequence.tokens = event.tokens
        if sequence.state is not SequenceState.ENDING:
            sequence.state = SequenceState.PAUSED
            sequence.since_s = self._state.clock.now()
            self._state.emit("sequence.paused", sequence.resident.id, f"{_words(sequence)} pauses for memory")
        self._pump()

    def _on_end(self, sequence: Sequence, event: Finished | Failed) -> None:
        if isinstance(event, Failed) and isinstance(event.error, OutOfMemory) and _may_begin_again(sequence):
            words = _words(sequence)
            self._give_back(f"{words} ran out of memory")
            sequence.begin_again(self._state.clock.now())
            self._state.emit(
                "sequence.retried",
                sequence.resident.id,
                f"{words} ran out of memory; idle models are freed and it is tried once more",
            )
            self._pump()
            return
        if isinstance(event, Finished):
            self._count(sequence, event.usage.completion_tokens)
            self._state.prompt_tokens += event.usage.prompt_tokens
        sequence.events.put(event.error if isinstance(event, Failed) else event)
        if sequence.place == 0:
            sequence.ticket.turn = self._state.next_number()
        sequence.end()
        sequence.resident.untrimmable_bytes = 0
        self._pump()


def _submit(sequence: Sequence, prompt: PreparedPrompt, kv_tokens: int) -> Submit:
    request = sequence.request
    if request is None:
        raise RuntimeError(f"sequence {sequence.number} has a prompt and no request")
    return Submit(
        sequence.number,
        prompt,
        request.sampling,
        tuple(request.stop),
        kv_tokens,
        request.logprobs,
        request.scores_prompt,
        prompt.thinking_budget,
        sequence.checkpoint_bytes,
    )


def _engine(sequence: Sequence) -> Engine:
    engine = sequence.resident.engine
    if engine is None or sequence.resident.state is ModelState.UNLOADING:
        raise RuntimeError(f"{sequence.resident.id} was unloaded under sequence {sequence.number}")
    return engine


def _is_still_good(sequence: Sequence) -> bool:
    """Whether what was made ready is for the model as it is loaded now; else its tokens may mean other words."""
    made_for, loaded = sequence.ticket.prepared_for, sequence.resident.load.origin
    return made_for is None or (loaded is not None and loaded.reads_like(made_for))


def _may_begin_again(sequence: Sequence) -> bool:
    """Whether an attempt that ran out of memory can be repeated without its reader seeing anything of it."""
    is_wanted = sequence.state in {SequenceState.RUNNING, SequenceState.PAUSING}
    return is_wanted and sequence.completion_tokens == 0 and not sequence.is_second_try


def _words(sequence: Sequence) -> str:
    return f"request {sequence.ticket.request_id} on {sequence.resident.id} at {sequence.tokens} tokens"
