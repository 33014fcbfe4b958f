"""What a promise of the pool is, as a check that watches a world."""

from __future__ import annotations

from collections.abc import Iterable

from mlxd.pool.event import PoolEvent
from mlxd.pool.resident import Resident
from tests.support.pool_world import World

# What makes a model go, by the words of the reason. Only the first is a person's will.
BY_COMMAND = ("by command", "left the disk", "can no longer be served", "it is loaded again")
FOR_ROOM = ("making room for", "ran out of memory")
FOR_LIMIT = ("over the limit", "short of memory")
FOR_TIME = ("idle for its keep_alive",)
SHORT = "the system is short of memory"


class Promise:
    """One of the twelve."""

    def __init__(self, watched: World) -> None:
        self.world = watched
        self.state = watched.pool._state

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        """Judge what the pool does, in the middle of its doing it."""

    def look(self) -> None:
        """Judge what stands between events."""

    def look_at_end(self) -> None:
        """Judge what is left when all requests have ended and nothing is under way."""

    @property
    def residents(self) -> Iterable[Resident]:
        return self.state.residents.values()


class DeparturePromise(Promise):
    """One that judges each departure of a model once, when it is decided: a change that comes later is too late."""

    def __init__(self, watched: World) -> None:
        super().__init__(watched)
        self._leaving: set[str] = set()

    def on_event(self, event: PoolEvent, resident: Resident | None) -> None:
        if resident is None:
            return
        if event.kind == "model.unloaded":
            self._leaving.discard(resident.id)
        elif event.kind in {"model.draining", "model.evicting"} and resident.id not in self._leaving:
            self._leaving.add(resident.id)
            self.judge(resident)

    def judge(self, resident: Resident) -> None:
        """Judge that *resident* goes, for its `leave_reason`."""
        raise NotImplementedError


def says(reason: str, words: tuple[str, ...]) -> bool:
    """Whether the reason is of this sort."""
    return any(word in reason for word in words)
