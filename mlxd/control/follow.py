"""How the pool and the catalog follow the settings: the participants that `daemon.py` attaches to the store."""

from __future__ import annotations

import asyncio

from mlxd.catalog import Catalog, resolve_roots
from mlxd.pool.pool import Pool
from mlxd.pool.status import PoolPlan
from mlxd.protocol.paths import Home
from mlxd.protocol.settings import Settings


class PoolFollower:
    """The pool as a participant."""

    def __init__(self, pool: Pool) -> None:
        """Take the pool."""
        self._pool = pool

    def check(self, new: Settings, *, force: bool) -> list[str]:
        """Ask the pool."""
        return self._pool.check(new, force=force)

    def plan(self, old: Settings, new: Settings) -> PoolPlan:
        """Ask the pool."""
        return self._pool.plan(old, new)

    def apply(self, old: Settings, new: Settings) -> PoolPlan:  # noqa: ARG002  (a participant gets both)
        """Have the pool begin."""
        return self._pool.apply(new)


class CatalogFollower:
    """The catalog as a participant: other `catalog.paths` are searched at once, on a worker thread."""

    def __init__(self, catalog: Catalog, pool: Pool, home: Home, paths: tuple[str, ...]) -> None:
        """Take the catalog, who wants to know of its models, where relative paths lead, and the paths in force."""
        self._catalog = catalog
        self._pool = pool
        self._home = home
        self._paths = paths
        self._scanning: set[asyncio.Task[None]] = set()

    def check(self, new: Settings, *, force: bool) -> list[str]:  # noqa: ARG002  (there is nothing to force)
        """Warn of new folders that do not exist; they may lie on a disk that is not there now."""
        added = [path for path in new.catalog.paths if path not in self._paths]
        return [f"{root} is not there now" for root in resolve_roots(added, self._home) if not root.is_dir()]

    def plan(self, old: Settings, new: Settings) -> None:
        """Return nothing: what is found is known when it was searched."""

    def apply(self, old: Settings, new: Settings) -> None:  # noqa: ARG002  (a participant gets both)
        """Search the new folders."""
        if self._paths == new.catalog.paths:
            return
        self._paths = new.catalog.paths
        self._catalog.set_roots(resolve_roots(self._paths, self._home))
        task = asyncio.get_running_loop().create_task(self.rescan())
        self._scanning.add(task)
        task.add_done_callback(self._scanning.discard)

    async def rescan(self) -> None:
        """Look at the disk again, and tell the pool."""
        await asyncio.to_thread(self._catalog.scan)
        self._pool.rescan()
