"""The pool's public face: leases, loads, settings, status, shutdown. Everything is called on the event loop.

Owns residents, leases, the wait queue and the memory ledger. Must not import mlx, mlx_lm or aiohttp.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mlxd.catalog import ModelEntry
from mlxd.engine.base import Backend
from mlxd.pool.clock import Clock
from mlxd.pool.event import OnEvent
from mlxd.pool.lease import Lease
from mlxd.pool.status import PoolPlan, PoolStatus
from mlxd.protocol.settings import Settings


class Models(Protocol):
    """What the pool asks of the catalog."""

    def entries(self) -> tuple[ModelEntry, ...]:
        """Return all models."""

    def get(self, model_id: str) -> ModelEntry:
        """Return the model or raise `ModelNotFound`."""

    def nearest(self, name: str) -> list[str]:
        """Return the ids most like *name*."""


class Pool:
    """Keeps models loaded within the memory limit and hands out leases on them."""

    def __init__(
        self,
        backend: Backend,
        catalog: Models,
        settings: Settings,
        *,
        clock: Clock,
        usable_bytes: int,
        on_event: OnEvent,
    ) -> None:
        """Take all collaborators; nothing happens before `start`."""

    async def start(self) -> None:
        """Tell the backend its limits and begin with the preload list, in order; returns at once and never fails."""
        raise NotImplementedError

    def lease(self, model_id: str, *, request_id: str) -> AbstractAsyncContextManager[Lease]:
        """Return a context manager that waits for the model to be ready and holds it: now, or queued, evicting, loading.

        Raises (on entering):
            ModelNotFound: no such model on disk, or it cannot be served; with the nearest names.
            QueueFull: too many requests wait already.
            QueueTimeout, LoadTimeout: it waited for a place, or for the load, as long as the settings allow.
            LoadFailed: with the cause, also during the backoff after a failed load.
            DoesNotFit: it can never fit under the limit; nothing was evicted for it.
            ModelUnloaded: the model was unloaded by command meanwhile.
            Draining: the daemon is shutting down.
        """
        raise NotImplementedError

    async def load(self, model_id: str, *, force: bool = False) -> None:
        """Load the model and return when it is ready; a load that runs already is joined.

        Args:
            model_id: a model of the catalog.
            force: load it although its estimate does not fit under the limit; it then stays until it is unloaded.

        Raises:
            as `lease`, but for QueueFull.
        """
        raise NotImplementedError

    async def unload(self, model_id: str, *, force: bool = False) -> bool:
        """Unload the model when its requests have ended and return when it is gone; False if it was not loaded.

        Requests that have not started get `ModelUnloaded`. A preloaded model stays away until something asks for it.

        Args:
            model_id: a model of the catalog.
            force: end its running requests with `RequestCancelled` instead of waiting for them.

        Raises:
            ModelNotFound: no such model.
        """
        raise NotImplementedError

    def evict_idle(self) -> PoolPlan:
        """Begin to unload every idle model that is neither pinned nor preloaded; return what was begun."""
        raise NotImplementedError

    def status(self) -> PoolStatus:
        """Return a snapshot."""
        raise NotImplementedError

    @property
    def queue_length(self) -> int:
        """How many requests wait that could not start at once."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether the preload list is done with (loaded, deferred or failed) and the daemon is not shutting down."""
        raise NotImplementedError

    def check(self, new: Settings, *, force: bool) -> list[str]:
        """Refuse settings that the pool cannot honour, and return warnings for those that it can with a reservation.

        Only what differs from the live settings is judged, so that an old trouble does not block another change.

        Raises:
            InsufficientCapacity: a limit below the pinned models, above usable memory, or a preload list that cannot fit;
                *force* passes the first two and turns them into warnings, and defers the tail of the list.
            InvalidValue: an unknown model in `pool.preload` or pinned in `[models]`, with the nearest names.
        """
        raise NotImplementedError

    def plan(self, old: Settings, new: Settings) -> PoolPlan:
        """Return what `apply(new)` would begin now; changes nothing."""
        raise NotImplementedError

    def apply(self, new: Settings) -> PoolPlan:
        """Take *new* as the live settings and begin what follows from them. Synchronous; cannot fail."""
        raise NotImplementedError

    async def wait_settled(self, change: PoolPlan, timeout_s: float | None = None) -> tuple[str, ...]:
        """Wait until the evictions, drains and loads of *change* are done; return what is still busy, in words.

        Args:
            change: what `apply` returned.
            timeout_s: how long; None takes `pool.drain_timeout`.
        """
        raise NotImplementedError

    def force_drain(self, model_ids: Iterable[str]) -> int:
        """End the sequences that hold draining models with `RequestCancelled`; return how many."""
        raise NotImplementedError

    async def drain(self, timeout_s: float) -> int:
        """Stop admissions (`Draining`) and wait until all requests have ended; after *timeout_s* cancel the rest.

        Returns:
            how many sequences were cancelled.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Drop timers and loads in progress; the backend is closed by its owner afterwards."""
        raise NotImplementedError

    def rescan(self) -> None:
        """Look at the catalog again: models that are gone drain and unload; new ones of the preload list load."""
        raise NotImplementedError
