"""P3 to P6: how requests wait, and that they do not wait in vain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlxd.pool import ledger
from mlxd.pool.event import PoolEvent
from mlxd.pool.lifecycle import LEAVING, ModelState
from mlxd.pool.policy import Age, Rank
from mlxd.pool.resident import Resident, SequenceState
from tests.support.pool_world import World
from tests.support.promise.base import Promise

# A plan may be to trim a cache, and only the end of the trim tells that this is not enough any more.
TRIM_S = 0.2
NOT_THERE = frozenset({ModelState.UNLOADED, ModelState.QUEUED, ModelState.FAILED})


class P3NoResurrection(Promise):
    """A draining model grants no new leases; later requests wait for its reload."""

    def __init__(self, watched: World) -> None:
        super().__init__(watched)
        self._last: dict[str, str] = {}
        self._holders: dict[str, set[int]] = {}

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        before, after = self._last.get(str(event.model_id)), event.kind
        if not after.startswith("model.") or after == "model.load_progress":
            return
        self._last[str(event.model_id)] = after
        if before == "model.draining":
            assert after == "model.evicting", f"P3: draining, then {after}"
        if before == "model.evicting":
            assert after == "model.unloaded", f"P3: unloading, then {after}"

    def look(self) -> None:
        for resident in self.residents:
            if resident.state is not ModelState.DRAINING:
                self._holders.pop(resident.id, None)
                continue
            before = self._holders.setdefault(resident.id, set(resident.held))
            assert set(resident.held) <= before, "P3: a draining model granted a lease"
            assert not resident.can_unload, "P3: a drained model was not unloaded"


class P4Patience(Promise):
    """A waiter for B is not starved by requests to A: after `evict_patience`, what is younger has given way.

    Idle models go, and busy ones where even the least of all others that stay is in the way. Otherwise sequences do,
    also those of pinned and preloaded models. Only sequences older than the waiter may still hold what it needs, and
    nobody goes before they have ended: a stream has none of those.
    """

    def look(self) -> None:
        if self.state.pressure is not None or self.state.is_draining:
            return
        oldest = min(self._wants(), key=lambda want: want.oldest_age, default=None)
        patience_s = self.state.settings.pool.evict_patience
        if oldest is None or self.state.clock.now() < oldest.since_s + patience_s + TRIM_S:
            return
        leaving = [other for other in self.state.present if other.state in LEAVING and other is not oldest.resident]
        if any(other.oldest_wait is not None and other.oldest_wait < oldest.oldest_age for other in leaving):
            return  # an older request waits for a model that goes first: its wait is to be judged, and its base stays
        resident, need = oldest.resident, oldest.need_bytes
        staying = [other for other in self.state.present if other.state not in LEAVING]
        movable = [
            other
            for other in staying
            if other not in (resident, resident.base) and _may_go(self.state.rank(other), other)
        ]
        unmovable = [other for other in staying if other not in movable]
        busy = [other for other in staying if other not in movable or oldest.is_behind(other)]
        may_stay = busy if self._fits(map(oldest.least_bytes, busy), busy, oldest) else unmovable
        if not self._fits(map(oldest.older_bytes, may_stay), may_stay, oldest):
            return
        assert self._fits(map(oldest.settled_bytes, staying), staying, oldest), (
            f"P4: {resident.id} has waited for {need} bytes beyond the patience, and "
            f"{', '.join(other.id for other in staying)} keep what they have"
        )

    def _wants(self) -> Iterable[Want]:
        for resident in self.residents:
            if resident.state in NOT_THERE and resident.oldest_wait is not None:
                if resident.base is not None and resident.base.state is not ModelState.READY:
                    continue  # its base is wanted first
                need = ledger.floor_bytes(resident)
                yield Want(
                    resident, resident.oldest_wait, resident.oldest_wait_since_s, need, 0, int(resident.base is None)
                )
            for sequence in (*resident.waiting.values(), *resident.active.values()):
                is_waiting = sequence.state in {SequenceState.WAITING, SequenceState.PAUSED}
                if resident.state is ModelState.READY and is_waiting and not sequence.waits_for_slot:
                    tokens = sequence.first_grant_tokens
                    need = ledger.admission_bytes(resident, tokens)
                    yield Want(resident, sequence.age, sequence.since_s, need, tokens, 0)

    def _fits(self, sizes_bytes: Iterable[int], staying: list[Resident], want: Want) -> bool:
        pool = self.state.settings.pool
        n_models = sum(other.base is None for other in staying) + want.models
        is_crowded = pool.max_models is not None and n_models > pool.max_models
        return sum(sizes_bytes) + want.need_bytes <= pool.memory and not (is_crowded and want.models)


@dataclass(frozen=True, slots=True)
class Want:
    """Who waits for how much."""

    resident: Resident
    oldest_age: Age
    since_s: float
    need_bytes: int
    tokens: int
    models: int

    def is_behind(self, other: Resident) -> bool:
        """Whether requests keep a model that this may not evict: they run, or are older."""
        return other.has_requests or (other.oldest_wait is not None and other.oldest_wait <= self.oldest_age)

    def least_bytes(self, other: Resident) -> int:
        """Return what a model would hold if all its sequences waited for this."""
        return self.settled_bytes(other) if other is self.resident else ledger.floor_bytes(other)

    def older_bytes(self, other: Resident) -> int:
        """Return what a model would hold if its sequences that are younger than this were gone."""
        younger = [sequence for sequence in other.active.values() if sequence.age > self.oldest_age]
        return ledger.settled_bytes(other, without=younger) - self._trimmable_bytes(other)

    def settled_bytes(self, other: Resident) -> int:
        """Return what a model holds once all that has begun is done and its prompt cache is given back."""
        return ledger.settled_bytes(other) - self._trimmable_bytes(other)

    def _trimmable_bytes(self, other: Resident) -> int:
        return ledger.trimmable_bytes(other, self.tokens if other is self.resident else 0)


class P5NoQueueing(Promise):
    """A request for a ready model never waits behind another model's load."""

    def look(self) -> None:
        for resident in self.residents:
            if resident.state is not ModelState.READY:
                continue
            assert not resident.queue, "P5: a request for a ready model waits for its lease"
            has_slot = resident.slots_taken < self.state.settings.engine.max_sequences
            if not has_slot or resident.trim_target_bytes is not None:  # its end is still to be told
                continue
            is_trimming = any(other.trim_target_bytes is not None for other in self.state.present)
            for sequence in resident.waiting.values():
                is_freeing_for_it = sequence.is_second_try and self.state.is_freeing
                # For its checkpoints any cache gives.
                is_freeing_for_it |= sequence.wanted_checkpoint_bytes() > 0 and is_trimming
                needs = ledger.admission_bytes(resident, sequence.first_grant_tokens)
                assert needs > 0 or is_freeing_for_it, "P5: a sequence waits although it needs no memory"


class P6EveryWaitEnds(Promise):
    """Every waiter ends: served, error, cancelled or deadline; and every wait can say its reason."""

    def look(self) -> None:
        for wait in self.world.pool.status().queue if self.world.pool.queue_length else ():
            assert wait.reason, "P6: a wait without a reason"
        for resident in self.residents:
            if resident.has_waiters:
                assert resident.state is not ModelState.UNLOADED, "P6: wanted, and nothing is done"
            for ticket in resident.queue.values():
                self._look_at(resident, ticket.since_s)
            for sequence in resident.waiting.values():
                if not sequence.ticket.started:
                    self._look_at(resident, sequence.since_s)

    def look_at_end(self) -> None:
        assert self.world.pool.queue_length == 0, "P6: the queue is not empty"
        for resident in self.residents:
            assert not resident.queue, f"P6: {resident.id} has waiters in state {resident.state}"
            assert not resident.held, "P6: a lease leaked"
            assert not resident.waiting, "P6: a sequence waits forever"
            assert not resident.active, "P6: a sequence runs for nobody"

    def _look_at(self, resident: Resident, since_s: float) -> None:
        settings, now = self.state.settings, self.state.clock.now()
        if resident.loading is not None:
            since_s, most_s = max(since_s, resident.loading.load.started_s), settings.pool.load_timeout
        else:
            most_s = settings.queue.timeout
        assert now < since_s + most_s, f"P6: a wait for {resident.id} has gone on beyond its deadline"


def _may_go(rank: Rank, resident: Resident) -> bool:
    is_base_of_a_load = any(adapter.is_loading for adapter in resident.adapters.values())
    return resident.state is ModelState.READY and rank is Rank.ORDINARY and not is_base_of_a_load
