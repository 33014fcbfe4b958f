"""The pump: after every event it looks at the whole pool once and begins whatever can begin. No locks, no awaits.

Also the doors through which requests come and go. Slow work ends in `pump`; what is due later sets one timer.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from mlxd.clock import Timer
from mlxd.engine.base import Backend, Engine, GenerationRequest, PreparedPrompt
from mlxd.engine.vector import PreparedInputs
from mlxd.pool import report
from mlxd.pool.allocator import Allocator
from mlxd.pool.event import copy_error
from mlxd.pool.executor import Executor
from mlxd.pool.lifecycle import ABSENT, Comeback, ModelState
from mlxd.pool.loader import Loader, Noted, unnoted
from mlxd.pool.policy import Rank
from mlxd.pool.pressure import Pressure
from mlxd.pool.queue_limit import refuse_if_full, retry_after_s
from mlxd.pool.resident import Resident, Sequence, SequenceState, Ticket
from mlxd.pool.state import PoolState
from mlxd.pool.task import Conditions, Tasks
from mlxd.protocol.errors import (
    Draining,
    EngineError,
    LoadFailed,
    LoadTimeout,
    MlxdError,
    OutOfMemory,
    QueueTimeout,
    RequestCancelled,
)

# How much the newest lease counts in the mean service time.
SERVICE_WEIGHT = 0.2

_log = logging.getLogger(__name__)


class Scheduler:
    """Decides when: grants leases, ends drains, expires waits and idle models, and runs the allocator."""

    def __init__(self, state: PoolState, backend: Backend, tasks: Tasks, noted: Noted = unnoted) -> None:
        self._state = state
        self._tasks = tasks
        self.loader = Loader(state, backend, tasks, self.pump, noted)
        self.executor = Executor(state, self._pump_soon, self.loader.give_back)
        self.pressure = Pressure(state, self.loader, self._wake_at)
        self._allocator = Allocator(state, self.executor, self.loader, self._wake_at, self._contain)
        self.conditions = Conditions(state.clock)
        self._is_pumping = False
        self._is_due_again = False
        self._is_due_soon = False
        self._is_closed = False
        self._was_over_limit = False
        self._timer: Timer | None = None
        self._timer_s = math.inf
        self._wake_s = math.inf

    def pump(self) -> None:
        """Begin whatever can begin now."""
        self._is_due_again = True
        if self._is_pumping or self._is_closed:
            return
        self._is_pumping = True
        try:
            while self._is_due_again:
                self._is_due_again = False
                self._wake_s = math.inf
                self._run_round()
        finally:
            self._is_pumping = False
        self._set_timer()
        self._report_limit()
        self.conditions.look()

    def _pump_soon(self) -> None:
        """Pump when a pass of the device is told to its end: before, KV that moved into the cache counts twice."""
        if not self._is_due_soon:
            self._is_due_soon = True
            self._tasks.soon(self._pump_now)

    def _pump_now(self) -> None:
        self._is_due_soon = False
        self.pump()

    def close(self) -> None:
        """Begin nothing any more."""
        self._is_closed = True
        self._drop_timer()

    # Doors

    def join(self, model_id: str, request_id: str, *, is_command: bool = False, force: bool = False) -> Ticket:
        """Let a request wait for the model; its ticket is granted at once when the model is ready.

        Raises:
            ModelNotFound, QueueFull, LoadFailed, Draining: as `Pool.lease` says.
        """
        state = self._state
        if state.is_draining:
            raise Draining("the server is shutting down", retry_after_s=state.settings.daemon.drain_timeout)
        resident = state.resident(model_id)
        now = state.clock.now()
        for needed in (resident, resident.base):
            if needed is None or needed.state is not ModelState.FAILED:
                continue
            if needed.is_refused and needed.error is not None:
                raise copy_error(needed.error)
            if now < needed.backoff.retry_s and not is_command:
                raise _in_backoff(needed, now)
        ticket = Ticket(
            number=state.next_number(),
            request_id=request_id,
            resident=resident,
            since_s=now,
            granted=asyncio.get_running_loop().create_future(),
            arrived_s=now,
            is_command=is_command,
            force=force,
        )
        resident.queue[ticket.number] = ticket
        if not is_command:
            try:
                refuse_if_full(state, resident)
            except MlxdError:
                del resident.queue[ticket.number]
                raise
        self.pump()
        if not ticket.granted.done():
            state.tell_waiting(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Take the request out of the queue, or take its lease back; does nothing the second time."""
        resident = ticket.resident
        self._state.tell_not_waiting(ticket)
        resident.queue.pop(ticket.number, None)
        for sequence in list(ticket.sequences.values()):
            self.executor.abort(sequence, RequestCancelled("the lease was given back"))
        if resident.held.pop(ticket.number, None) is not None and ticket.granted_s is not None:
            now = self._state.clock.now()
            resident.touch(now)
            service_s = now - ticket.granted_s
            self._state.mean_service_s += SERVICE_WEIGHT * (service_s - self._state.mean_service_s)
        self.pump()

    async def attach(self, ticket: Ticket) -> Engine:
        """Return the engine; wait for it when the model was unloaded while the request only waited for a place."""
        resident = ticket.resident
        while True:
            _check_open(ticket)
            is_there = resident.state is ModelState.READY or (resident.state is ModelState.DRAINING and ticket.holds)
            if is_there and resident.engine is not None:
                return resident.engine
            ticket.granted = asyncio.get_running_loop().create_future()
            ticket.since_s = self._state.clock.now()
            resident.queue[ticket.number] = ticket
            self.pump()
            try:
                await ticket.granted
            finally:
                resident.queue.pop(ticket.number, None)

    def begin(
        self, ticket: Ticket, request: GenerationRequest | None, prompt: PreparedPrompt | PreparedInputs
    ) -> Sequence:
        """Start a sequence if there is a slot and memory for it, else let it wait for them; vectors have no request."""
        _check_open(ticket)
        sequence = Sequence(
            number=self._state.next_number(),
            ticket=ticket,
            request=request,
            prompt=prompt,
            tokens=prompt.prefill_tokens,
            since_s=self._state.clock.now(),
            place=len(ticket.sequences),
        )
        ticket.sequences[sequence.number] = sequence
        ticket.resident.waiting[sequence.number] = sequence
        self.pump()
        sequence.is_fresh = False
        if sequence.state is SequenceState.WAITING:
            self._state.tell_waiting(ticket)
            self.pump()  # it holds nothing any more
        return sequence

    def drop(self, sequence: Sequence) -> None:
        """End a sequence that nobody reads any more."""
        if sequence.state is not SequenceState.ENDED:
            self.executor.drop(sequence)
            self.pump()

    def revoke(self, resident: Resident, error: MlxdError) -> int:
        """End everything that holds the model, or an adapter on it, with *error*; return how many sequences."""
        ended = 0
        held = [ticket for holder in (resident, *resident.adapters.values()) for ticket in holder.held.values()]
        for ticket in held:
            ticket.revoked = error
            for sequence in list(ticket.sequences.values()):
                self.executor.abort(sequence, error)
                ended += 1
        self.pump()
        return ended

    # One round

    def _run_round(self) -> None:
        self.pressure.look()
        residents = list(self._state.residents.values())
        for resident in residents:
            with self._contain(resident):
                if resident.state is ModelState.DRAINING and resident.can_unload:
                    self.loader.unload(resident)
                if resident.state is ModelState.READY:
                    self._grant_leases(resident)
        self._expire_idle()
        self._reload_stale()
        self._allocator.enforce_limit()
        self._allocator.grow()
        self._allocator.admit()
        self._allocator.enforce_limit()  # what has started just now may be older than what went over the limit
        for resident in residents:
            with self._contain(resident):
                self._mark_queued(resident)
                self._expire_waits(resident)
                self._expire_load(resident)

    @contextmanager
    def _contain(self, want: Sequence | Resident) -> Iterator[None]:
        """Keep a fault in planning for one sequence or model from all others: only who waits for it gets an error."""
        try:
            yield
        except Exception:  # noqa: BLE001  (a mistake of ours about one model, and the round is everybody's)
            model_id = want.resident.id if isinstance(want, Sequence) else want.id
            _log.exception("planning for %s failed", model_id)
            message = f"{model_id} cannot be planned for: a fault of the server, whose log has the cause"
            if isinstance(want, Sequence):
                self._is_due_again = True
                self.executor.abort(want, EngineError(message))
            elif want.state in ABSENT:
                self._is_due_again = True
                self.loader.fail(want, LoadFailed(message))
            else:
                self._is_due_again |= want.has_waiters
                want.fail_waiting(EngineError(message))

    def _grant_leases(self, resident: Resident) -> None:
        for ticket in resident.queue.values():
            if not ticket.is_command:
                if ticket.granted_s is None:
                    ticket.granted_s = self._state.clock.now()
                    resident.count_use(ticket.granted_s)
                resident.held[ticket.number] = ticket
            ticket.grant()
        resident.queue.clear()

    def _expire_idle(self) -> None:
        for resident in self._state.present:
            with self._contain(resident):
                expiry_s = self._state.expiry_s(resident)
                if self._state.clock.now() >= expiry_s:
                    self.loader.drain(resident, "idle for its keep_alive")
                else:
                    self._wake_at(expiry_s)

    def _reload_stale(self) -> None:
        """Let go of loaded models that are to take up other files or settings, so that they are loaded again."""
        for resident in self._state.present:
            with self._contain(resident):
                reason = self._state.stale_reason(resident) if resident.state is ModelState.READY else None
                mode = self._state.reload_mode(resident)
                if reason is None or mode == "next-load":
                    continue
                if mode == "now" or not (resident.has_requests or resident.has_waiters):
                    for returning in (resident, *resident.adapters.values()):
                        if returning.state is ModelState.READY:
                            returning.comeback = Comeback.AT_ONCE
                        else:
                            returning.stop_returning()
                    self.loader.drain(resident, f"it is loaded again: {reason}")

    def _mark_queued(self, resident: Resident) -> None:
        if resident.has_waiters and resident.state in {ModelState.UNLOADED, ModelState.FAILED}:
            resident.enter(ModelState.QUEUED)
        elif not resident.has_waiters and resident.state in {ModelState.QUEUED, ModelState.RETRYING}:
            resident.enter(ModelState.UNLOADED)

    def _expire_waits(self, resident: Resident) -> None:
        """Fail the requests that have waited too long: for a place, or for the load once that has begun."""
        now = self._state.clock.now()
        for ticket in list(resident.queue.values()):
            deadline_s = self._deadline_s(resident, ticket.since_s)
            if now >= deadline_s:
                ticket.fail(self._timeout(resident, report.reason_waiting(self._state, ticket)))
                del resident.queue[ticket.number]
                self._is_due_again = True
            else:
                self._wake_at(deadline_s)
        for sequence in list(resident.waiting.values()):
            deadline_s = self._deadline_s(resident, sequence.since_s)
            if sequence.ticket.started:
                continue  # its siblings have begun to answer: it goes on when they end
            if now >= deadline_s:
                sequence.fail(self._timeout(resident, report.reason_waiting(self._state, sequence.ticket)))
                self._is_due_again = True
            else:
                self._wake_at(deadline_s)

    def _expire_load(self, resident: Resident) -> None:
        """Abort a load that takes too long, unless somebody who came later or the preload list wants it still."""
        if resident.state is not ModelState.LOADING or resident.has_waiters:
            return
        if self._state.rank(resident) is not Rank.ORDINARY:
            return
        timeout_s = self._state.settings.pool.load_timeout
        deadline_s = resident.load.started_s + timeout_s
        if self._state.clock.now() >= deadline_s:
            self.loader.abort(resident, f"it has not loaded within {timeout_s:g} s, and no request waits for it")
        else:
            self._wake_at(deadline_s)

    def _deadline_s(self, resident: Resident, since_s: float) -> float:
        if resident.loading is not None:
            return max(since_s, resident.loading.load.started_s) + self._state.settings.pool.load_timeout
        return since_s + self._state.settings.queue.timeout

    def _timeout(self, resident: Resident, reason: str) -> MlxdError:
        waiting = sum(ticket.resident is resident for ticket in self._state.waiting_tickets())
        retry_after = retry_after_s(self._state, waiting)
        if resident.loading is not None:
            seconds = self._state.settings.pool.load_timeout
            return LoadTimeout(f"{resident.loading.id} has not loaded within {seconds:g} s", retry_after_s=retry_after)
        seconds = self._state.settings.queue.timeout
        return QueueTimeout(f"waited {seconds:g} s for {resident.id}: {reason}", retry_after_s=retry_after)

    def _wake_at(self, moment_s: float) -> None:
        self._wake_s = min(self._wake_s, moment_s)

    def _set_timer(self) -> None:
        if self._wake_s == self._timer_s:
            return
        self._drop_timer()
        if not math.isinf(self._wake_s):
            self._timer_s = self._wake_s
            delay_s = max(0.0, self._wake_s - self._state.clock.now())
            self._timer = self._state.clock.call_later(delay_s, self._on_timer)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = None, math.inf

    def _on_timer(self) -> None:
        self._timer, self._timer_s = None, math.inf
        self.pump()

    def _report_limit(self) -> None:
        reason = report.over_limit(self._state)
        if reason is not None and not self._was_over_limit:
            self._state.emit("pool.over_limit", None, f"over the limit: {reason}", {"reason": reason})
        elif reason is None and self._was_over_limit:
            self._state.emit("pool.within_limit", None, "within the limit again")
        self._was_over_limit = reason is not None


def _check_open(ticket: Ticket) -> None:
    if ticket.revoked is not None:
        raise copy_error(ticket.revoked)
    if ticket.number not in ticket.resident.held:
        raise RuntimeError("the lease was given back already")


def _in_backoff(resident: Resident, now: float) -> MlxdError:
    left_s = resident.backoff.retry_s - now
    cause = "its load failed" if resident.error is None else resident.error.message
    kind = OutOfMemory if isinstance(resident.error, OutOfMemory) else LoadFailed
    return kind(
        f"{resident.id} could not be loaded: {cause}; it is not tried again for {left_s:.0f} s",
        hint=f"mlxctl model load {resident.id} tries at once",
        retry_after_s=left_s,
    )
