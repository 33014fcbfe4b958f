"""The lifecycle of a model in the pool: its states, the ways between them, its last load, its failures, its uses."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

from mlxd.catalog import ModelEntry
from mlxd.engine.base import Engine
from mlxd.engine.vector import Pooling

# After a failed load: 5 s, doubled with every failure in a row, at most 5 min.
FIRST_BACKOFF_S = 5.0
MOST_BACKOFF_S = 300.0
# After so long a use counts for half: 16 of yesterday at this time are worth one now, last week's nothing.
USE_HALF_LIFE_S = 6 * 3600.0


class ModelState(Enum):
    """Where a model is."""

    UNLOADED = "unloaded"
    QUEUED = "queued"  # wanted, and waiting for room
    RETRYING = "retrying"  # wanted: its load ran out of memory, and is tried once more when idle models are freed
    LOADING = "loading"
    ABORTING = "aborting"  # its load was told to end before it is complete
    READY = "ready"
    DRAINING = "draining"  # grants no leases; goes when its requests have ended
    UNLOADING = "unloading"  # the device is freeing it
    FAILED = "failed"  # the load failed; tried again when the backoff is over

    @property
    def word(self) -> str:
        """The word that status has for it."""
        return {ModelState.RETRYING: "queued", ModelState.ABORTING: "loading"}.get(self, self.value)


TRANSITIONS: dict[ModelState, frozenset[ModelState]] = {
    # Failed at once: a model that must not be loaded.
    ModelState.UNLOADED: frozenset({ModelState.QUEUED, ModelState.LOADING, ModelState.FAILED}),
    # Failed before it began: a fault in planning its load.
    ModelState.QUEUED: frozenset({ModelState.UNLOADED, ModelState.LOADING, ModelState.FAILED}),
    ModelState.RETRYING: frozenset({ModelState.UNLOADED, ModelState.LOADING, ModelState.FAILED}),
    ModelState.LOADING: frozenset({ModelState.READY, ModelState.ABORTING, ModelState.RETRYING, ModelState.FAILED}),
    # Draining: it was complete before it was told.
    ModelState.ABORTING: frozenset({ModelState.UNLOADED, ModelState.DRAINING, ModelState.RETRYING, ModelState.FAILED}),
    ModelState.READY: frozenset({ModelState.DRAINING}),
    ModelState.DRAINING: frozenset({ModelState.UNLOADING}),
    ModelState.UNLOADING: frozenset({ModelState.UNLOADED}),
    ModelState.FAILED: frozenset({ModelState.QUEUED, ModelState.LOADING, ModelState.UNLOADED}),  # unloaded: reset
}
# States in which the ledger holds bytes for the model, and in which it counts against `pool.max_models`.
PRESENT = frozenset(
    {ModelState.LOADING, ModelState.ABORTING, ModelState.READY, ModelState.DRAINING, ModelState.UNLOADING}
)
ABSENT = frozenset(ModelState) - PRESENT
LEAVING = frozenset({ModelState.DRAINING, ModelState.UNLOADING})


class Comeback(Enum):
    """What loads a model that has left, beside a request and a command."""

    BY_LIST = "by list"  # the preload list, if it is on it
    AT_ONCE = "at once"  # it left to be loaded again, although nothing may want it
    NEVER = "never"  # it was unloaded by command: not even the preload list


@dataclass(frozen=True, slots=True)
class Origin:
    """What a load was made of: when that changes, the loaded model is stale."""

    entry: ModelEntry
    context_limit: int | None
    pooling: Pooling | None = None  # that the settings gave it
    base: Origin | None = None  # of an adapter: what its base was made of

    @property
    def files(self) -> tuple[object, ...]:
        """What tells the files that were read, those of the base included, from other ones."""
        return (self.entry.path, self.entry.signature, *(() if self.base is None else self.base.files))

    def reads_like(self, other: Origin) -> bool:
        """Whether what was made ready for one is good for the other: estimates may differ, files and settings not."""
        return self._meaning == other._meaning

    @property
    def _meaning(self) -> tuple[object, ...]:
        return (self.files, self.context_limit, self.pooling)


@dataclass(slots=True)
class LastLoad:
    """The last load of a model; one that it never had is empty."""

    origin: Origin | None = None
    started_s: float = 0.0
    total_bytes: int = 0
    done_bytes: int = 0
    is_forced: bool = False  # against the estimate
    is_retry: bool = False  # it is not tried once more
    task: asyncio.Future[Engine] | None = None  # while it runs


@dataclass(frozen=True, slots=True)
class Backoff:
    """The failures of a model's loads in a row, and how long they keep it from being loaded."""

    failures: int = 0
    retry_s: float = 0.0  # no load before this, but by command; infinity: none at all

    def after_failure(self, now: float) -> tuple[Backoff, float]:
        """Return what holds after one more failure, and how long it waits."""
        wait_s = min(FIRST_BACKOFF_S * 2**self.failures, MOST_BACKOFF_S)
        return Backoff(self.failures + 1, now + wait_s), wait_s


@dataclass(frozen=True, slots=True)
class Uses:
    """How often a model was used, where a use counts for less as it ages."""

    count: float = 0.0  # when the last was counted
    counted_s: float = 0.0

    def plus_one(self, now: float) -> Uses:
        """Return them with one more, now."""
        return Uses(self.at(now) + 1, now)

    def at(self, now: float) -> float:
        """Return how many they count for, each halved for every half-life since."""
        return float(self.count * 0.5 ** ((now - self.counted_s) / USE_HALF_LIFE_S))
