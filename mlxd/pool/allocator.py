"""Hands out memory and slots: growth first, then resumes, starts and loads by age, then the preload list.

It asks the policy what could give way and has it carried out; what cannot be had now is looked at again in the next
pump.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from mlxd.pool import ledger, policy
from mlxd.pool.executor import Executor
from mlxd.pool.lifecycle import ABSENT, PRESENT, Comeback, ModelState
from mlxd.pool.loader import Loader
from mlxd.pool.policy import YOUNGEST, Age, Demand, Outcome
from mlxd.pool.report import reason_blocked, reason_kept_out
from mlxd.pool.resident import Resident, Sequence, SequenceState
from mlxd.pool.state import PoolState
from mlxd.protocol.errors import DoesNotFit, ModelNotFound
from mlxd.protocol.units import show_bytes

# What is old in the prompt caches makes room for the end of a new prompt and for its head.
TRIMMED_CHECKPOINTS = 2


# Keeps what fails in planning for a sequence, or for the load of a model, from the others.
Contain = Callable[[Sequence | Resident], AbstractContextManager[None]]


@dataclass(slots=True)
class Claims:
    """What older demands have been promised in this round."""

    bytes: int = 0
    models: int = 0
    is_blocked: bool = False  # an older sequence waits for others to end: no younger one may take memory


class Allocator:
    """One round over everything that wants memory or a slot."""

    def __init__(
        self, state: PoolState, executor: Executor, loader: Loader, wake_at: Callable[[float], None], contain: Contain
    ) -> None:
        self._state = state
        self._executor = executor
        self._loader = loader
        self._wake_at = wake_at
        self._contain = contain

    def enforce_limit(self) -> None:
        """Come within the limit and `max_models`, as far as busy models allow."""
        if not self._state.is_over_limit:
            return
        plan = policy.plan_limit(self._state.view())
        self._loader.carry_out(plan, "over the limit")
        if plan.pause_bytes > 0 and self._state.running:
            self._pause_youngest(plan.pause_bytes, min(sequence.age for sequence in self._state.running))

    def grow(self) -> None:
        """Answer the running sequences that near their grant, oldest first; the oldest of all is never refused."""
        running = sorted(self._state.running, key=lambda sequence: sequence.age)
        claimed_bytes = 0
        for sequence in [sequence for sequence in running if sequence.wanted_tokens is not None]:
            with self._contain(sequence):
                claimed_bytes += self._grow(sequence, claimed_bytes, is_oldest=sequence is running[0])

    def admit(self) -> None:
        """Resume, start and load by age, then go on with the preload list."""
        claims = Claims()
        crowd = [sequence for resident in self._state.residents.values() for sequence in self._mark_crowd(resident)]
        # An adapter before its base: one that can never fit must not have a base loaded for it.
        for age, want in sorted(self._wants(), key=lambda item: (item[0], _is_whole(item[1]))):
            with self._contain(want):
                if isinstance(want, Sequence):
                    self._admit_sequence(want, claims)
                else:
                    self._admit_load(want, age, claims)
        for sequence in crowd:
            with self._contain(sequence):
                self._admit_in_vacant_slot(sequence, claims)
        self._preload(claims)
        self._return(claims)

    def _grow(self, sequence: Sequence, claimed_bytes: int, *, is_oldest: bool) -> int:
        """Answer a running sequence that nears its grant; return what it has been promised and does not have yet."""
        if sequence.wanted_tokens is None:  # paused for an older one in this very round
            return 0
        n_bytes = ledger.growth_bytes(sequence, sequence.wanted_tokens)
        view = self._state.view()
        if n_bytes <= max(0, view.free_bytes - claimed_bytes):
            self._executor.grant(sequence)
            return 0
        plan = policy.plan_growth(view, sequence.resident.id, sequence.age, n_bytes + claimed_bytes)
        self._loader.carry_out(plan, f"making room for {sequence.resident.id}")
        paused_bytes = self._pause_youngest(plan.pause_bytes, sequence.age)
        if paused_bytes < plan.pause_bytes and is_oldest:
            self._executor.grant(sequence)  # over the limit: there is always progress
            return 0
        return n_bytes

    def _pause_youngest(self, n_bytes: int, than: Age) -> int:
        """Pause sequences younger than *than*, youngest first, until *n_bytes* are coming; return how many are."""
        freed_bytes = 0
        for sequence in sorted(self._state.running, key=lambda sequence: sequence.age, reverse=True):
            if freed_bytes >= n_bytes or sequence.age <= than:
                break
            resident = sequence.resident
            gain_bytes = ledger.settled_bytes(resident) - ledger.settled_bytes(resident, without=[sequence])
            if gain_bytes > 0:
                self._executor.pause(sequence)
                freed_bytes += gain_bytes
        return freed_bytes

    def _wants(self) -> list[tuple[Age, Sequence | Resident]]:
        """Return what waits: sequences for a slot or KV, and models for their load, each with its age."""
        wants: list[tuple[Age, Sequence | Resident]] = []
        for resident in self._state.residents.values():
            wants += [
                (sequence.age, sequence)
                for sequence in (*resident.active.values(), *resident.waiting.values())
                if _may_start(sequence)
            ]
            if resident.state in ABSENT and resident.oldest_wait is not None:
                wants.append((resident.oldest_wait, resident))
        return wants

    def _mark_crowd(self, resident: Resident) -> list[Sequence]:
        """Mark and return the sequences for which the model has no slot; the oldest get those that are free."""
        wanting = [
            sequence for sequence in (*resident.active.values(), *resident.waiting.values()) if _may_start(sequence)
        ]
        wanting.sort(key=lambda sequence: sequence.age)
        n_free = max(0, self._state.settings.engine.max_sequences - resident.slots_taken)
        for place, sequence in enumerate(wanting):
            sequence.waits_for_slot = place >= n_free
        return wanting[n_free:]

    def _admit_in_vacant_slot(self, sequence: Sequence, claims: Claims) -> None:
        """Start a sequence in a slot that those before it lack the memory to take."""
        resident = sequence.resident
        has_slot = resident.slots_taken < self._state.settings.engine.max_sequences
        n_bytes = ledger.admission_bytes(resident, sequence.first_grant_tokens)
        free_bytes = max(0, self._state.free_bytes - claims.bytes)
        if has_slot and _may_start(sequence) and n_bytes <= free_bytes:
            self._start(sequence, self._checkpoint_bytes(sequence, free_bytes - n_bytes, may_trim=False))

    def _admit_sequence(self, sequence: Sequence, claims: Claims) -> None:
        resident = sequence.resident
        if sequence.waits_for_slot or not _may_start(sequence):  # its model has just been evicted for an older one
            return
        tokens = sequence.first_grant_tokens
        n_bytes = ledger.admission_bytes(resident, tokens)
        if sequence.is_second_try and sequence.state is SequenceState.WAITING and self._state.is_freeing:
            claims.bytes += n_bytes
            return
        free_bytes = self._state.free_bytes - claims.bytes
        # What needs no memory waits for none: it keeps as much as is free.
        may_trim = n_bytes > 0 and not claims.is_blocked
        checkpoint_bytes = self._checkpoint_bytes(sequence, max(0, free_bytes) - n_bytes, may_trim=may_trim)
        if n_bytes + checkpoint_bytes <= max(0, free_bytes):
            self._start(sequence, checkpoint_bytes)
        elif resident.state is ModelState.READY or sequence.state is SequenceState.PAUSED:
            self._make_room_for(sequence, claims, checkpoint_bytes)

    def _start(self, sequence: Sequence, checkpoint_bytes: int) -> None:
        sequence.checkpoint_bytes = checkpoint_bytes
        self._executor.start(sequence)

    def _checkpoint_bytes(self, sequence: Sequence, spare_bytes: int, *, may_trim: bool) -> int:
        """Return how much a sequence may keep on its way: what is spare, and a little that prompt caches give back."""
        if self._state.settings.engine.prompt_cache == 0:
            return 0
        wanted_bytes = min(sequence.wanted_checkpoint_bytes(), max(0, spare_bytes))
        least_bytes = sequence.wanted_checkpoint_bytes(TRIMMED_CHECKPOINTS)
        if wanted_bytes < least_bytes and may_trim:
            wanted_bytes = least_bytes
            for resident in self._state.present:
                tokens = sequence.first_grant_tokens if resident is sequence.resident else 0
                spare_bytes += ledger.trimmable_bytes(resident, tokens)
                if resident.trim_target_bytes is not None:
                    spare_bytes += ledger.held_bytes(resident) - ledger.settled_bytes(resident)
        return max(0, min(wanted_bytes, spare_bytes))

    def _make_room_for(self, sequence: Sequence, claims: Claims, checkpoint_bytes: int) -> None:
        """Have others give way for a sequence that does not fit, or let it wait with what it was promised."""
        resident = sequence.resident
        tokens = sequence.first_grant_tokens
        # What has begun must go on when nothing else does, over the limit if need be: there is always progress.
        may_overrun = sequence.ticket.started and not any(other.granted_tokens for other in self._active())
        if claims.is_blocked and not sequence.is_fresh and not may_overrun:
            return
        demand = self._demand(resident, sequence.age, sequence.since_s, claims, tokens)
        demand = dataclasses.replace(demand, bytes=demand.bytes + checkpoint_bytes)
        plan = policy.plan_room(self._state.view(age=sequence.age, target=resident, tokens=tokens), demand)
        if plan.outcome is Outcome.NEVER and sequence.state is SequenceState.WAITING:
            sequence.fail(self._does_not_fit(resident, tokens))
            return
        if plan.outcome is Outcome.FREEING:
            self._make_room(plan, demand)
        if may_overrun and not self._state.is_freeing:
            self._executor.start(sequence)
            return
        claims.bytes += demand.bytes
        if plan.outcome is not Outcome.FREEING:
            claims.is_blocked = True
            self._wake_for_patience(demand, sequence.since_s)

    def _admit_load(self, resident: Resident, age: Age, claims: Claims) -> None:
        if not resident.has_waiters:  # an adapter on it was, and can never fit
            return
        since_s = resident.oldest_wait_since_s
        is_forced = resident.has_forcing_waiters
        demand = self._demand(resident, age, since_s, claims)
        view = self._state.view(age=age)
        base = resident.base
        if base is not None and base.state is not ModelState.READY:
            if policy.never_fits(view, demand) and not is_forced:
                resident.fail_waiting(self._does_not_fit(resident))
            resident.blocked_reason = _reason_base(base)
            return
        force = is_forced and policy.never_fits(view, demand)
        if force:
            demand = self._forced(view, demand)
        plan = policy.plan_room(view, demand)
        if plan.outcome is Outcome.NEVER:
            resident.fail_waiting(self._does_not_fit(resident))
        elif self._state.pressure is not None and not is_forced:
            resident.blocked_reason = self._state.pressure
        elif resident.state is ModelState.RETRYING and self._state.is_freeing:
            resident.blocked_reason = "it ran out of memory; what is idle is freed before it is tried once more"
            claims.bytes += demand.bytes
            claims.models += demand.models
        elif plan.outcome is Outcome.FITS:
            self._loader.load(resident, force=force)
        elif plan.outcome is Outcome.FREEING:
            resident.blocked_reason = reason_blocked(self._state, resident)
            self._make_room(plan, demand)
            claims.bytes += demand.bytes
            claims.models += demand.models
        else:
            resident.blocked_reason = reason_blocked(self._state, resident)
            self._wake_for_patience(demand, since_s)

    def _make_room(self, plan: policy.Plan, demand: Demand) -> None:
        """Begin what the plan for a demand says."""
        self._loader.carry_out(plan, f"making room for {demand.target}")
        self._pause_youngest(plan.pause_bytes, demand.age)

    def _preload(self, claims: Claims) -> None:
        """Begin the next load of the preload list that has room, if no request's load is under way or wanted."""
        state = self._state
        state.deferred, state.coming = {}, set()
        is_behind = any(
            resident.is_loading or (resident.state in ABSENT and resident.has_waiters)
            for resident in state.residents.values()
        )
        for place, model_id in enumerate(state.settings.pool.preload):
            try:
                resident = state.resident(model_id)
            except ModelNotFound as error:
                state.deferred[model_id] = error.message
                continue
            backoff, can_return = resident.backoff, resident.comeback is not Comeback.NEVER
            if resident.state not in ABSENT:
                continue
            if resident.has_waiters:
                state.coming.add(model_id)
            elif backoff.failures and can_return and state.clock.now() < backoff.retry_s:
                self._wake_at(backoff.retry_s)
            elif (reason := reason_kept_out(state, resident)) is not None:
                state.deferred[model_id] = reason
            elif is_behind or state.is_draining:
                state.deferred[model_id] = "it waits for other loads"
                state.coming.add(model_id)
            else:
                with self._contain(resident):
                    is_behind = self._preload_one(resident, place, claims)
                base = resident.base
                if is_behind or (base is not None and base.state in PRESENT and base.state is not ModelState.READY):
                    state.coming.add(model_id)

    def _return(self, claims: Claims) -> None:
        """Load again what went for that, if there is still room and nothing else is on its way; else let it be."""
        state = self._state
        for resident in [resident for resident in state.residents.values() if resident.comeback is Comeback.AT_ONCE]:
            if resident.state in PRESENT or resident.has_waiters:
                continue
            is_preloaded = resident.id in state.settings.pool.preload  # it comes back by itself
            base = resident.base
            if (
                base is not None
                and base.state is not ModelState.READY
                and (base.comeback is Comeback.AT_ONCE or base.state in PRESENT)
            ):
                continue  # after its base
            is_in_vain = state.is_draining or state.pressure is not None or resident.state is ModelState.FAILED
            with self._contain(resident):
                if is_preloaded or is_in_vain or not self._preload_one(resident, 0, claims):
                    resident.stop_returning()

    def _preload_one(self, resident: Resident, place: int, claims: Claims) -> bool:
        """Load it or make room for it; return False when there is none to be had."""
        base = resident.base
        if base is not None and base.state is not ModelState.READY:
            self._state.deferred[resident.id] = _reason_base(base)
            if base.backoff.failures and self._state.clock.now() < base.backoff.retry_s:
                self._wake_at(base.backoff.retry_s)
                return False
            return base.state in ABSENT and self._preload_one(base, place, claims)
        demand = self._demand(resident, (YOUNGEST[0], place, 0), self._state.clock.now(), claims)
        plan = policy.plan_room(self._state.view(), demand)
        if plan.outcome is Outcome.FITS:
            self._loader.load(resident)
        elif plan.outcome is Outcome.FREEING:
            self._state.deferred[resident.id] = "room is being made for it"
            self._make_room(plan, demand)
        elif plan.outcome is Outcome.NEVER:
            self._state.deferred[resident.id] = self._does_not_fit(resident).message
            return False
        else:
            self._state.deferred[resident.id] = reason_blocked(self._state, resident)
            return False
        return True

    def _demand(self, resident: Resident, age: Age, since_s: float, claims: Claims, tokens: int = 0) -> Demand:
        """Return the demand of a sequence that is to get *tokens*, or, without, of a load."""
        floor_bytes = ledger.floor_bytes(resident, tokens)
        patience_s = self._state.settings.pool.evict_patience
        base = resident.base
        return Demand(
            target=resident.id,
            age=age,
            bytes=ledger.admission_bytes(resident, tokens) if tokens else floor_bytes,
            footprint_bytes=floor_bytes + (0 if base is None else ledger.floor_bytes(base)),
            models=0 if tokens or base is not None else 1,
            base=None if base is None else base.id,
            is_adapter_load=base is not None and not tokens,
            claimed_bytes=claims.bytes,
            claimed_models=claims.models,
            is_overdue=age < YOUNGEST and self._state.clock.now() >= since_s + patience_s,
        )

    def _forced(self, view: policy.View, demand: Demand) -> Demand:
        """Return the demand of a load by force: as much of what it needs as can be had at all."""
        protected_bytes = sum(candidate.floor_bytes for candidate in policy.protected(view))
        n_bytes = min(demand.bytes, max(0, view.limit_bytes - protected_bytes))
        return dataclasses.replace(demand, bytes=n_bytes, footprint_bytes=n_bytes)

    def _wake_for_patience(self, demand: Demand, since_s: float) -> None:
        if not demand.is_overdue:
            self._wake_at(since_s + self._state.settings.pool.evict_patience)

    def _active(self) -> list[Sequence]:
        return [sequence for resident in self._state.residents.values() for sequence in resident.active.values()]

    def _does_not_fit(self, resident: Resident, tokens: int = 0) -> DoesNotFit:
        view = self._state.view()
        base = resident.base
        others = policy.protected(view, resident.id, None if base is None else base.id)
        need_bytes = ledger.floor_bytes(resident, tokens) + (0 if base is None else ledger.floor_bytes(base))
        what = f"{resident.id} with {tokens} tokens of context" if tokens else resident.id
        beside = "".join(f", {other.model_id} keeps {show_bytes(other.floor_bytes)}" for other in others)
        message = f"{what} needs {show_bytes(need_bytes)}; the memory limit is {show_bytes(view.limit_bytes)}{beside}"
        n_models = sum(other.base is None for other in others)  # adapters do not count against it
        if view.max_models is not None and not tokens and base is None and n_models >= view.max_models:
            message += f"; pool.max_models is {view.max_models}"
        return DoesNotFit(
            message,
            hint=f"mlxctl pool set-memory SIZE\nmlxctl model load {resident.id} --force, when the estimate is wrong",
            data={"need_bytes": need_bytes, "limit_bytes": view.limit_bytes},
        )


def _is_whole(want: Sequence | Resident) -> bool:
    return isinstance(want, Resident) and want.base is None


def _reason_base(base: Resident) -> str:
    """Return why an adapter's load does not start while its base is not ready."""
    if base.state in PRESENT:
        return f"its base {base.id} is {base.state.word}"
    if base.state is ModelState.FAILED and base.error is not None and not base.has_waiters:  # else it is tried again
        return f"its base could not be loaded: {base.error.message}"
    return f"its base {base.id} waits for room" if base.blocked_reason is None else base.blocked_reason


def _may_start(sequence: Sequence) -> bool:
    """Whether its model can take it, or take it back; a draining one takes new sequences at their first try only."""
    state = sequence.resident.state
    if sequence.state is SequenceState.PAUSED:
        return state in {ModelState.READY, ModelState.DRAINING}
    if sequence.state is not SequenceState.WAITING:
        return False
    return state is ModelState.READY or (state is ModelState.DRAINING and sequence.is_fresh)
