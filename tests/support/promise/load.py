"""P7, P8, P11: what a load is, who shares it, and that it completes."""

from __future__ import annotations

from mlxd.engine.base import LoadSpec
from mlxd.pool.event import PoolEvent
from mlxd.pool.resident import Resident, Ticket
from tests.support.pool_world import World
from tests.support.promise.base import Promise


class P7OneLoad(Promise):
    """N requests for one unloaded model make one load; a failed load gives all of them its cause."""

    def __init__(self, watched: World) -> None:
        super().__init__(watched)
        self._starts = self._aborts = 0
        self._failed: list[tuple[str, list[Ticket]]] = []

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        if event.kind == "model.loading":
            self._starts += 1
        if event.kind == "model.load_aborted":
            self._aborts += 1
        if event.kind == "model.load_failed" and resident is not None:
            waiting = [ticket for ticket in resident.queue.values() if not ticket.granted.done()]
            self._failed.append((event.data["error"]["code"], waiting))

    def look(self) -> None:
        loads = [call for call in self.world.backend.calls if call.startswith("load ")]
        never_begun = self._aborts - self.world.backend.cancelled_loads  # aborted before the device knew of it
        assert len(loads) == self._starts - never_begun, "P7: one load per start"
        for code, waiting in self._failed:
            for ticket in waiting:
                error = None if ticket.granted.cancelled() else ticket.granted.exception()
                told = getattr(error, "code", None)
                assert ticket.granted.cancelled() or told == code, f"P7: a load failed with {code}, a waiter got {told}"
        self._failed.clear()


class P8OnePath(Promise):
    """Explicit, on-demand and preload loads take the same path and the same settings."""

    def __init__(self, watched: World) -> None:
        super().__init__(watched)
        self._expected: list[tuple[str, int]] = []
        self._seen = 0

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        if event.kind == "model.loading":
            self._expected.append((str(event.model_id), self.state.settings.engine.prompt_cache))
        elif event.kind == "model.load_aborted":
            expected = [place for place, (model_id, _) in enumerate(self._expected) if model_id == event.model_id]
            begun = [spec for spec in self.world.backend.specs if spec.model_id == event.model_id]
            if len(expected) > len(begun):  # aborted before the device knew of it
                del self._expected[expected[-1]]

    def look(self) -> None:
        specs: list[LoadSpec] = self.world.backend.specs
        new = [(spec.model_id, spec.prompt_cache_limit_bytes) for spec in specs[self._seen :]]
        assert new == self._expected[self._seen : len(specs)], "P8: a load did not go by the settings"
        self._seen = len(specs)


class P11LoadsComplete(Promise):
    """A started load completes, whoever goes; only the pool aborts one, and says why."""

    def __init__(self, watched: World) -> None:
        super().__init__(watched)
        self._open: set[str] = set()

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        if event.kind == "model.loading":
            assert event.model_id not in self._open, "P11: a second load while the first runs"
            self._open.add(str(event.model_id))
        if event.kind in {"model.loaded", "model.load_failed", "model.load_retried", "model.load_aborted"}:
            self._open.remove(str(event.model_id))

    def look(self) -> None:
        loading = {resident.id for resident in self.residents if resident.is_loading}
        assert loading == self._open, "P11: a load has ended without an end"
        aborts = [event for event in self.world.events if event.kind == "model.load_aborted"]
        assert self.world.backend.cancelled_loads <= len(aborts), "P11: a load was cancelled"

    def look_at_end(self) -> None:
        assert not self._open, "P11: a load never ended"
