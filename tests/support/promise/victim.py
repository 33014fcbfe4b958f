"""P1, P2, P9, P10: what the limit means, and who may give way for whom."""

from __future__ import annotations

from mlxd.pool import ledger
from mlxd.pool.event import PoolEvent
from mlxd.pool.lifecycle import LEAVING, ModelState
from mlxd.pool.policy import Rank
from mlxd.pool.resident import Resident
from tests.support.pool_world import World
from tests.support.promise.base import BY_COMMAND, FOR_LIMIT, FOR_ROOM, FOR_TIME, DeparturePromise, Promise, says


class P1Limit(Promise):
    """Reserved + resident ≤ limit, except in the named state `over_limit`, in which no new load starts."""

    def __init__(self, watched: World) -> None:
        super().__init__(watched)
        self.is_excused = False  # by a lowered limit, a pin, or a model that measured more than was estimated

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        if event.kind == "model.loading" and resident is not None:
            assert resident.is_forced or not self.state.is_over_limit, "P1: a load was started over the limit"
        if event.kind == "model.loaded" and resident is not None:
            self.is_excused |= resident.weights_bytes != resident.entry.weights_bytes or resident.is_forced

    def look(self) -> None:
        if not self.state.is_over_limit:
            self.is_excused = False
            return
        assert self.world.pool.status().over_limit, "P1: over the limit without a reason"
        is_mended = sum(map(ledger.settled_bytes, self.state.present)) <= self.state.settings.pool.memory
        if self.is_excused or is_mended:
            return
        # Else only the oldest running sequence may have gone over it, after all others had given way.
        for sequence in sorted(self.state.running, key=lambda sequence: sequence.age)[1:]:
            resident = sequence.resident
            gain = ledger.settled_bytes(resident) - ledger.settled_bytes(resident, without=[sequence])
            assert gain == 0, "P1: over the limit although a younger sequence could pause"
        for resident in self.state.present:
            is_idle = resident.state is ModelState.READY and resident.can_unload and not resident.waiting
            assert not is_idle or self.state.rank(resident) is not Rank.ORDINARY, "P1: over it beside an idle model"


class P2Protection(DeparturePromise):
    """Leased, loading and pinned models are never implicit victims; preloaded ones only where the rules say so."""

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        super().on_event(event, resident)
        if event.kind == "model.evicting":
            assert resident is not None
            assert resident.can_unload, "P2: a leased model was unloaded"

    def judge(self, resident: Resident) -> None:
        reason, rank = resident.leave_reason, self.state.rank(resident)
        assert resident.state in LEAVING, "P2: a model that loads gave way"
        if says(reason, BY_COMMAND):
            return
        assert rank is not Rank.PINNED, "P2: a pinned model gave way"
        if says(reason, FOR_ROOM) or says(reason, FOR_TIME):
            assert rank is Rank.ORDINARY, f"P2: a preloaded model left: {reason}"
        else:
            assert says(reason, FOR_LIMIT), f"P2: a model left for a reason that is not known: {reason}"


class P9Pins(DeparturePromise):
    """Pinned means no idle unload and no eviction, until unpinned, unloaded or shutdown."""

    def __init__(self, watched: World) -> None:
        super().__init__(watched)
        self._pinned: set[str] = set()

    def judge(self, resident: Resident) -> None:
        if says(resident.leave_reason, BY_COMMAND):
            self._pinned.discard(resident.id)

    def look(self) -> None:
        for model_id in self._pinned:
            resident = self.state.residents.get(model_id)
            is_pinned = resident is not None and self.state.rank(resident) is Rank.PINNED
            is_there = resident is not None and resident.state is ModelState.READY
            assert is_there or not is_pinned, f"P9: {model_id} is pinned and has left"
        self._pinned = {
            resident.id
            for resident in self.residents
            if resident.state is ModelState.READY and self.state.rank(resident) is Rank.PINNED
        }


class P10NothingInVain(DeparturePromise):
    """A target that can never fit is refused before anything is evicted for it."""

    def judge(self, resident: Resident) -> None:
        _, _, target_id = resident.leave_reason.partition("making room for ")
        if not target_id:
            return
        target = self.state.residents[target_id]
        protected = [
            other
            for other in self.state.present
            if other not in (target, target.base)
            and other.state not in LEAVING
            and self.state.rank(other) is not Rank.ORDINARY
        ]
        own = [target] if target.base is None else [target, target.base]
        least_bytes = sum(map(ledger.floor_bytes, [*own, *protected]))
        is_forced = target.has_forcing_waiters
        assert is_forced or least_bytes <= self.state.settings.pool.memory, f"P10: evicted in vain for {target_id}"
