"""Dry runs: plays a command through on a copy of the pool, and returns what it would begin and lead to.

They are no second implementation of the pool's decisions: the scheduler, allocator, loader and policies of the live
path run here as they are. Only what they stand on is made up: a device on which slow work succeeds at once when the
rehearsal lets it, a clock that stands still, and waiting tasks that nobody awaits. So requests that run do not end and
patience does not pass: what would wait for them stays waiting, with its reason.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterable
from functools import partial
from typing import Any, NoReturn, TypeVar

from mlxd.clock import Timer
from mlxd.engine.base import (
    BackendLimits,
    BackendMemory,
    Engine,
    EngineFacts,
    Finished,
    FinishReason,
    GenerationRequest,
    Listener,
    LoadProgress,
    LoadSpec,
    Paused,
    SchedulingParams,
    Submit,
    Usage,
)
from mlxd.engine.vector import EmbeddingRequest, PreparedInputs
from mlxd.pool import intervention, ledger, report
from mlxd.pool.event import EventBuffer, PoolEvent
from mlxd.pool.intervention import Outset, deferred_models
from mlxd.pool.lifecycle import ModelState
from mlxd.pool.meter import TokenMeter
from mlxd.pool.resident import Resident, Sequence, SequenceState, Ticket
from mlxd.pool.scheduler import Scheduler
from mlxd.pool.state import PoolState
from mlxd.pool.status import PoolPlan, Victim
from mlxd.protocol.errors import MlxdError, RequestCancelled
from mlxd.protocol.settings import Settings

T = TypeVar("T")

# Requests on the copy are younger than all real ones.
_FIRST_NUMBER = 2**62
# A pool that a change sets in motion forever (it would be a fault of the policy) is shown in motion.
_MOST_STEPS = 10_000


def plan_settings(state: PoolState, new: Settings) -> PoolPlan:
    """Return what a change of settings would do."""
    rehearsal = Rehearsal(state, new)
    intervention.take_settings(rehearsal.state, rehearsal.scheduler, new)
    return rehearsal.plan()


def plan_unload(state: PoolState, model_id: str, *, force: bool) -> PoolPlan:
    """Return what `model unload` would do.

    Raises:
        ModelNotFound: no such model.
    """
    rehearsal = Rehearsal(state)
    resident = intervention.resident_of(rehearsal.state, model_id)
    intervention.begin_unload(rehearsal.state, rehearsal.scheduler, resident, force=force)
    return rehearsal.plan()


def plan_evict(state: PoolState, model_ids: Iterable[str]) -> PoolPlan:
    """Return what an eviction by command would do."""
    rehearsal = Rehearsal(state)
    intervention.begin_evict(rehearsal.state, rehearsal.scheduler, model_ids)
    return rehearsal.plan()


def plan_load(state: PoolState, model_id: str, *, force: bool = False) -> PoolPlan:
    """Return what `model load` would do.

    Where busy models block the load, `waiting` says so, and `draining` names those that would have to drain after
    `drain_after_s`. `evicting_later` also names what goes when those have drained, or when a load by force has taken
    the pool over its limit.

    Raises:
        ModelNotFound, DoesNotFit, Draining: as the load would.
    """
    rehearsal = Rehearsal(state)
    ticket = rehearsal.scheduler.join(model_id, "model load", is_command=True, force=force)
    begun = rehearsal.plan()
    error = ticket.granted.exception() if ticket.granted.done() else None
    if isinstance(error, MlxdError):
        raise error
    waiting = None if ticket.granted.done() else report.reason_waiting(rehearsal.state, ticket)
    patience_s = rehearsal.state.settings.pool.evict_patience
    if waiting is not None:
        rehearsal.let_pass(patience_s)
    draining = {model.id: model for model in rehearsal.outset.begun().draining}
    while rehearsal.let_drain():
        draining = {model.id: model for model in rehearsal.outset.begun().draining} | draining
    known = {victim.id for victim in begun.evicting} | draining.keys()
    aborted = {str(event.model_id) for event in rehearsal.happened("model.load_aborted")}
    is_patient = waiting is not None and draining.keys() > {model.id for model in begun.draining}
    return dataclasses.replace(
        begun,
        draining=tuple(draining.values()),
        aborting=tuple(
            Victim(model.id, state.held_bytes_of(model.id))
            for model in state.present
            if model.state is ModelState.LOADING and model.id in aborted
        ),
        evicting_later=tuple(victim for victim in rehearsal.evicted() if victim.id not in known),
        deferred=tuple(deferred_models(rehearsal.state)),
        over_limit=report.over_limit(rehearsal.state),
        waiting=waiting,
        drain_after_s=patience_s if is_patient else None,
    )


class Rehearsal:
    """A copy of the pool, its scheduler, and what that has begun."""

    def __init__(self, live: PoolState, new: Settings | None = None) -> None:
        """Copy *live*, with what is under way in it; *new* are the settings that come, if any do."""
        self.events: list[PoolEvent] = []
        self._pending: deque[Callable[[], None]] = deque()
        self._clock = _StillClock(live.clock.now())
        self.state = PoolState(live.catalog, live.settings, self._clock, self.events.append, _FIRST_NUMBER)
        _copy_state(live, self.state)
        self.scheduler = Scheduler(self.state, _Stage(self.state), self)
        for resident in self.state.residents.values():
            if resident.engine is not None:
                resident.engine = _Engine(
                    resident.engine.model_id, resident.engine.facts, resident.engine.prompt_cache_bytes
                )
        for resident in self.state.residents.values():
            self.scheduler.loader.follow(resident)
        self.outset = Outset(self.state, new)

    def plan(self) -> PoolPlan:
        """Note what has begun, let it come to its end, and return both."""
        begun = self.outset.begun()
        self.finish()
        evicted = self.evicted()
        # A base that drains goes when its adapters have gone, which takes no request's end.
        sure = {*(victim.id for victim in begun.evicting), *(model.id for model in begun.draining)}
        gone = {victim.id for victim in evicted}
        return dataclasses.replace(
            begun,
            evicting=tuple(victim for victim in evicted if victim.id in sure),
            draining=tuple(model for model in begun.draining if model.id not in gone),
            evicting_later=tuple(victim for victim in evicted if victim.id not in sure),
            trimming=tuple(self._trimmed(gone)),
            loading=tuple(dict.fromkeys(str(event.model_id) for event in self.happened("model.loading"))),
            deferred=tuple(deferred_models(self.state)),
            over_limit=report.over_limit(self.state),
        )

    def evicted(self) -> list[Victim]:
        """Return the models that were ready, or being loaded, and have gone, in order."""
        evicted: dict[str, Victim] = {}
        for event in self.happened("model.evicting"):
            if event.model_id in self.outset.staying_bytes:
                evicted.setdefault(event.model_id, Victim(event.model_id, event.data["bytes"]))
        return list(evicted.values())

    def _trimmed(self, gone: Container[str]) -> Iterable[Victim]:
        """Yield what was taken out of the prompt caches of models that stay."""
        for resident in self.state.present:
            freed_bytes = self.outset.cached_bytes.get(resident.id, 0) - resident.prompt_cache_bytes
            if freed_bytes > 0 and resident.id not in gone:
                yield Victim(resident.id, freed_bytes)

    def finish(self) -> None:
        """Let everything succeed that does not wait for running requests."""
        for _ in range(_MOST_STEPS):
            self._answer_commands()
            if not self._pending:
                return
            self._pending.popleft()()

    def let_pass(self, seconds: float) -> None:
        """Let time pass in which no request comes, runs on or ends; then finish again."""
        self._clock.move(seconds)
        self.scheduler.pump()
        self.finish()

    def let_drain(self) -> bool:
        """Let the requests end that hold draining models, then finish again; return False when there are none."""
        draining = [resident for resident in self.state.present if resident.state is ModelState.DRAINING]
        for resident in draining:
            self.scheduler.revoke(resident, RequestCancelled("its model drains, and it has ended"))
        self.finish()
        return bool(draining)

    def happened(self, kind: str) -> list[PoolEvent]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if event.kind == kind]

    # `Tasks`

    def begin(self, work: Coroutine[Any, Any, T], on_end: Callable[[asyncio.Future[T]], None]) -> asyncio.Future[T]:
        """Keep the work until `finish`."""
        ended: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append(partial(_succeed, work, ended, on_end))
        return ended

    def soon(self, callback: Callable[[], None]) -> None:
        """Keep it likewise."""
        self._pending.append(callback)

    def cancel_all(self) -> list[asyncio.Task[Any]]:
        """Return nothing: there are no tasks."""
        return []

    def _answer_commands(self) -> None:
        """Say what the device says soon: rows that were told to pause, to end or to hold more have done so."""
        for resident in self.state.residents.values():
            for sequence in list(resident.active.values()):
                if sequence.state is SequenceState.PAUSING:
                    self.scheduler.executor.take(sequence, Paused(sequence.number, sequence.tokens))
                elif sequence.state is SequenceState.ENDING:
                    ended = Finished(sequence.number, FinishReason.CANCELLED, Usage(0, 0, 0))
                    self.scheduler.executor.take(sequence, ended)
                elif sequence.left_tokens > 0:
                    self.scheduler.executor.confirm_grant(sequence)


def _succeed(
    work: Coroutine[Any, Any, T], ended: asyncio.Future[T], on_end: Callable[[asyncio.Future[T]], None]
) -> None:
    """Run work that awaits nothing, unless it was cancelled, and hand over what it returns."""
    if ended.cancelled():
        work.close()
        on_end(ended)
        return
    try:
        work.send(None)
    except StopIteration as end:
        ended.set_result(end.value)
    on_end(ended)


def _copy_state(live: PoolState, copy: PoolState) -> None:
    copy.is_draining = live.is_draining
    copy.deferred = dict(live.deferred)
    copy.mean_service_s = live.mean_service_s
    copy.pressure, copy.pressure_until_s = live.pressure, live.pressure_until_s
    copy.spare_bytes = live.spare_bytes
    copy.residents.update((model_id, _copy_resident(resident)) for model_id, resident in live.residents.items())
    for twin in copy.residents.values():
        twin.base = None if twin.base is None else copy.residents[twin.base.id]
        twin.adapters = {model_id: copy.residents[model_id] for model_id in twin.adapters}


def _copy_resident(resident: Resident) -> Resident:
    twin = dataclasses.replace(
        resident, load=dataclasses.replace(resident.load), queue={}, held={}, waiting={}, active={}, meter=TokenMeter()
    )
    tickets: dict[Ticket, Ticket] = {}
    sequences: dict[Sequence, Sequence] = {}

    def copy_ticket(ticket: Ticket) -> Ticket:
        if ticket not in tickets:
            nobody: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            tickets[ticket] = dataclasses.replace(ticket, resident=twin, granted=nobody, sequences={})
            tickets[ticket].turn = ticket.turn
            tickets[ticket].sequences = {key: copy_sequence(value) for key, value in ticket.sequences.items()}
        return tickets[ticket]

    def copy_sequence(sequence: Sequence) -> Sequence:
        if sequence not in sequences:
            ticket = copy_ticket(sequence.ticket)
            if sequence not in sequences:  # else its ticket has just copied it
                sequences[sequence] = dataclasses.replace(sequence, ticket=ticket, events=EventBuffer())
        return sequences[sequence]

    twin.queue = {number: copy_ticket(ticket) for number, ticket in resident.queue.items()}
    twin.held = {number: copy_ticket(ticket) for number, ticket in resident.held.items()}
    twin.waiting = {number: copy_sequence(sequence) for number, sequence in resident.waiting.items()}
    twin.active = {number: copy_sequence(sequence) for number, sequence in resident.active.items()}
    return twin


class _StillClock:
    """A clock that stands unless it is moved."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s

    def now(self) -> float:
        return self._now_s

    def move(self, seconds: float) -> None:
        self._now_s += seconds

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:  # noqa: ARG002  (its time never comes)
        return _Never()


class _Never:
    """A timer that never fires."""

    def cancel(self) -> None:
        """Do nothing."""


class _Stage:
    """A backend on which everything succeeds."""

    def __init__(self, state: PoolState) -> None:
        self._state = state

    async def load(self, spec: LoadSpec, on_progress: LoadProgress) -> Engine:  # noqa: ARG002  (it takes no time)
        resident = self._state.residents[spec.model_id]
        return _Engine(resident.id, resident.facts if resident.facts is not None else _estimated(resident), 0)

    async def unload(self, engine: Engine) -> None:
        pass

    def set_limits(self, limits: BackendLimits) -> None:
        pass

    def set_scheduling(self, params: SchedulingParams) -> None:
        pass

    async def memory(self) -> BackendMemory:
        return BackendMemory(0, 0, 0)

    async def close(self) -> None:
        pass


def _estimated(resident: Resident) -> EngineFacts:
    context = resident.context_length
    return EngineFacts(
        weights_bytes=resident.weights_bytes,
        kv=resident.kv,
        context_length=ledger.SHORT_SEQUENCE_TOKENS if context is None else context,
        vocab_size=0,
        has_thinking=False,
        tool_format="",
        chat_template=False,
    )


class _Engine:
    """An engine that holds what the real one holds, and does nothing."""

    def __init__(self, model_id: str, facts: EngineFacts, cached_bytes: int) -> None:
        self.model_id = model_id
        self.facts = facts
        self.grammar_bytes = 0  # what a trim frees is one sum
        self.prompts_too_large = 0
        self.prompt_cache_bytes = cached_bytes

    async def prepare(self, request: GenerationRequest) -> NoReturn:
        raise NotImplementedError(f"a rehearsal prepares no prompt: {request!r}")

    def submit(self, submit: Submit, listener: Listener) -> None:
        pass

    async def prepare_inputs(self, request: EmbeddingRequest) -> NoReturn:
        raise NotImplementedError(f"a rehearsal prepares no texts: {request!r}")

    def embed(self, sequence_id: int, inputs: PreparedInputs, kv_tokens: int, listener: Listener) -> None:
        pass

    def grant(self, sequence_id: int, kv_tokens: int) -> None:
        pass

    def pause(self, sequence_id: int) -> None:
        pass

    def resume(self, sequence_id: int, kv_tokens: int) -> None:
        pass

    def cancel(self, sequence_id: int) -> None:
        pass

    def set_prompt_cache_limit(self, max_bytes: int) -> None:
        self.prompt_cache_bytes = min(self.prompt_cache_bytes, max_bytes)

    async def trim_prompt_cache(self, max_bytes: int) -> int:
        self.prompt_cache_bytes = min(self.prompt_cache_bytes, max_bytes)
        return self.prompt_cache_bytes
