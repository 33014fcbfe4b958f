"""What must hold of a pool at every quiet moment; each check names the promise that it stands for."""

from __future__ import annotations

import json
from dataclasses import asdict

from mlxd.pool import ledger
from mlxd.pool.event import PoolEvent
from mlxd.pool.policy import Rank
from mlxd.pool.resident import ModelState, Resident
from mlxd.pool.sequence import SequenceState
from mlxd.pool.state import PoolState
from tests.support.pool_world import World


class Invariants:
    """Watches one world; `check` is called whenever the event loop is quiet."""

    def __init__(self, watched: World) -> None:
        self._world = watched
        self._state: PoolState = watched.pool._state
        self._holders: dict[str, set[int]] = {}  # of draining models
        self._draining: set[str] = set()
        self.limit_was_lowered = False

    def on_event(self, event: PoolEvent) -> None:
        """P1, P2 and P10 at the moment of a decision."""
        if event.kind == "model.loading":
            assert not self._state.is_over_limit, "P1: a load was started over the limit"
        if event.kind in {"model.draining", "model.evicting"}:
            assert event.model_id is not None
            resident = self._state.residents[event.model_id]
            is_implicit = "by command" not in resident.drain_reason
            if is_implicit and event.model_id not in self._draining:  # a pin comes too late for what drains already
                assert self._state.rank(resident) is not Rank.PINNED, "P2, P9: a pinned model gave way"
            if event.kind == "model.evicting":
                assert not resident.is_held, "P2: a leased model was unloaded"
            assert "for huge" not in resident.drain_reason, "P10: evicted for what can never fit"
            self._draining.add(event.model_id)
        if event.kind == "model.unloaded":
            self._draining.discard(str(event.model_id))

    def check(self) -> None:
        """Everything that holds between events."""
        self._check_limit()
        for resident in self._state.residents.values():
            self._check_resident(resident)
        if self._world.pool.queue_length:
            for wait in self._world.pool.status().queue:
                assert wait.reason, "P6: a wait without a reason"
        self._check_device()

    def _check_limit(self) -> None:
        if not self._state.is_over_limit:
            self.limit_was_lowered = False
            return
        reason = self._world.pool.status().over_limit
        assert reason, "P1: over the limit without a reason"
        is_mended = sum(map(ledger.settled_bytes, self._state.present)) <= self._state.settings.pool.memory
        if self.limit_was_lowered or is_mended:
            return
        # Else only the oldest running sequence may have gone over it, after all others had given way.
        running = sorted(self._state.running, key=lambda sequence: sequence.age)
        for sequence in running[1:]:
            resident = sequence.resident
            gain = ledger.settled_bytes(resident) - ledger.settled_bytes(resident, without=sequence)
            assert gain == 0, "P1: over the limit although a younger sequence could pause"
        for resident in self._state.present:
            is_idle = resident.state is ModelState.READY and not resident.is_held and not resident.waiting
            assert not is_idle or self._state.rank(resident) is not Rank.ORDINARY, "P1: over it beside an idle model"

    def _check_resident(self, resident: Resident) -> None:
        if resident.state is ModelState.READY:
            assert not resident.queue, "P5: a request for a ready model waits for its lease"
            has_slot = resident.slots_taken < self._state.settings.engine.max_sequences
            if has_slot and resident.trim_target_bytes is None:  # its end is still to be told
                for sequence in resident.waiting.values():
                    needs = ledger.admission_bytes(resident, sequence.first_grant_tokens)
                    assert needs > 0, "P5: a sequence waits although it needs no memory"
        if resident.state is ModelState.DRAINING:
            before = self._holders.setdefault(resident.id, set(resident.held))
            assert set(resident.held) <= before, "P3: a draining model granted a lease"
            assert resident.is_held, "a drained model was not unloaded"
        else:
            self._holders.pop(resident.id, None)
        if resident.is_wanted:
            assert resident.state is not ModelState.UNLOADED, "P6: wanted, and nothing is done"
        for sequence in resident.active.values():
            holds = sequence.state in {SequenceState.RUNNING, SequenceState.PAUSING, SequenceState.ENDING}
            assert holds or sequence.granted_tokens == 0

    def _check_device(self) -> None:
        backend = self._world.backend
        assert backend.active_bytes <= self._state.held_bytes, "P12: the device holds more than the ledger says"
        loads = [call for call in backend.calls if call.startswith("load")]
        starts = [event for event in self._world.events if event.kind == "model.loading"]
        assert len(loads) == len(starts), "P7: one load per start"

    def check_end(self) -> None:
        """When all requests have ended and time enough has passed: nothing leaks."""
        json.dumps(asdict(self._world.pool.status()))
        assert self._world.pool.queue_length == 0
        for resident in self._state.residents.values():
            assert not resident.queue, f"{resident.id} {resident.state}"
            assert not resident.held, "a lease leaked"
            assert not resident.waiting
            assert not resident.active
        assert self._world.backend.running == 0
        assert all(engine.sequences == 0 for engine in self._world.backend.engines)
        assert not self._state.is_over_limit or self._world.pool.status().over_limit
