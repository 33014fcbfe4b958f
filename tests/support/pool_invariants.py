"""The twelve promises of the pool, watching one world while anything happens to it.

A promise looks at every event of the pool as it is emitted, at every moment when the event loop is quiet, and at the
end, when all requests have ended.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mlxd.engine.base import EngineFacts
from mlxd.pool.event import PoolEvent
from tests.support.pool_world import World
from tests.support.promise.base import Promise
from tests.support.promise.load import P7OneLoad, P8OnePath, P11LoadsComplete
from tests.support.promise.truth import P12Truth
from tests.support.promise.victim import P1Limit, P2Protection, P9Pins, P10NothingInVain
from tests.support.promise.wait import P3NoResurrection, P4Patience, P5NoQueueing, P6EveryWaitEnds
from tests.support.tally import Tally

PROMISES: tuple[type[Promise], ...] = (
    P1Limit,
    P2Protection,
    P3NoResurrection,
    P4Patience,
    P5NoQueueing,
    P6EveryWaitEnds,
    P7OneLoad,
    P8OnePath,
    P9Pins,
    P10NothingInVain,
    P11LoadsComplete,
    P12Truth,
)


class Invariants:
    """Promises that watch one world; all of them unless some are named."""

    def __init__(self, watched: World, tally: Tally, kinds: Sequence[type[Promise]] = PROMISES) -> None:
        self._state = watched.pool._state
        self._tally = tally
        self.limit = P1Limit(watched)
        self.truth = P12Truth(watched)
        made: dict[type[Promise], Promise] = {P1Limit: self.limit, P12Truth: self.truth}
        self._promises = [made.get(kind) or kind(watched) for kind in kinds]

    def on_event(self, event: PoolEvent) -> None:
        """To be called with every event of the pool."""
        self._tally.events[event.kind] += 1
        resident = self._state.residents.get(str(event.model_id))
        for promise in self._promises:
            promise.on_event(event, resident)

    def look(self) -> None:
        """To be called whenever the event loop is quiet."""
        self._tally.moments += 1
        for promise in self._promises:
            promise.look()

    def look_at_end(self) -> None:
        """To be called when all requests have ended and time enough has passed."""
        for promise in self._promises:
            promise.look_at_end()


class FaultHandler(logging.Handler):
    """Takes what the pool logs as its own fault: it keeps one from its callers, and no history may have any."""

    def __init__(self, broken: list[AssertionError]) -> None:
        super().__init__(logging.ERROR)
        self._broken = broken

    def emit(self, record: logging.LogRecord) -> None:
        self._broken.append(AssertionError(self.format(record)))


class WatchedWorld(World):
    """A world whose promises are looked at whenever something happens and whenever it is quiet."""

    def __init__(
        self,
        models: Mapping[str, int | EngineFacts],
        document: Mapping[str, Any] | None = None,
        *,
        tally: Tally | None = None,
        kinds: Sequence[type[Promise]] = PROMISES,
    ) -> None:
        super().__init__(models, document)
        self.tally = Tally() if tally is None else tally
        self.invariants = Invariants(self, self.tally, kinds)
        self.pool._state._on_event = self._on_event
        self._is_watched = True
        self._broken: list[AssertionError] = []
        self._faults = FaultHandler(self._broken)
        logging.getLogger("mlxd.pool").addHandler(self._faults)

    def _on_event(self, happened: PoolEvent) -> None:
        self.events.append(happened)
        if not self._is_watched:
            return
        try:
            self.invariants.on_event(happened)
        except AssertionError as broken:  # whoever runs the pump now would keep it to himself
            self._broken.append(broken)

    async def settle(self) -> None:
        await super().settle()
        if self._is_watched:
            if self._broken:
                raise self._broken[0]
            self.invariants.look()

    async def close(self) -> None:
        """End everything, which breaks every promise."""
        self._is_watched = False
        logging.getLogger("mlxd.pool").removeHandler(self._faults)
        await super().close()
