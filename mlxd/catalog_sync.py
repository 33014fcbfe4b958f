"""Keeps the catalog in step with the settings, which it takes part in committing, and with the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from mlxd.alias import alias_targets
from mlxd.catalog import Catalog, Prepared, adapter_paths, resolve_path, resolve_roots
from mlxd.model_folder import Signature, read_adapter
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import InvalidValue
from mlxd.protocol.key import format_path
from mlxd.protocol.paths import Home
from mlxd.protocol.settings import Settings

# How often the files of loaded models are looked at.
LOOK_S = 20.0


class CatalogSync:
    """Brings aliases, folders and adapters of the settings into the catalog, and tells the pool what changed.

    A commit searches on a worker thread before it is one, so that its reply knows the models; an edit of the file by
    hand is followed by a search.
    """

    groups = ("catalog", "models")  # of the settings

    def __init__(self, catalog: Catalog, pool: Pool, home: Home, settings: Settings) -> None:
        """Take the catalog, who wants to know of its models, where relative paths lead, and the settings in force."""
        self._catalog = catalog
        self._pool = pool
        self._home = home
        self._settings = settings
        self._prepared: Prepared | None = None
        self._changed: Mapping[str, Signature] = {}  # as the last look saw them
        self._scanning: set[asyncio.Task[None]] = set()
        catalog.set_aliases(alias_targets(settings))

    def check(self, new: Settings, *, force: bool) -> list[str]:
        """Warn of new folders that do not exist, since they may lie on a disk that is not there now.

        Raises:
            InvalidValue: a new alias is the id of a model, a context length is more than the model's own, an adapter
                cannot be used. *force* turns these into warnings.
        """
        added = [path for path in new.catalog.paths if path not in self._settings.catalog.paths]
        missing = [f"{root} is not there now" for root in resolve_roots(added, self._home) if not root.is_dir()]
        troubles = list(self._judge(new))
        if troubles and not force:
            raise troubles[0]
        return missing + [trouble.message for trouble in troubles]

    def apply(self, new: Settings) -> None:
        """Take the new names, and what `prepare` has found; else search the new folders."""
        is_elsewhere = self._where(new) != self._where(self._settings)
        self._settings = new
        self._catalog.set_aliases(alias_targets(new))
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._catalog.adopt(prepared)
            self._pool.rescan()
        elif is_elsewhere:
            task = asyncio.get_running_loop().create_task(self._search(new))
            self._scanning.add(task)
            task.add_done_callback(self._scanning.discard)

    async def prepare(self, new: Settings) -> None:
        """Search the new folders, on a worker thread."""
        where = self._where(new)
        if where != self._where(self._settings):
            self._prepared = await asyncio.to_thread(self._catalog.prepare, *where)

    def abandon(self) -> None:
        """Forget what was found."""
        self._prepared = None

    async def watch(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Look after the files of loaded models until cancelled."""
        while True:
            await sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Search again when files of a loaded model have changed or gone, and two looks in a row see the same.

        Only loaded models are looked after: others may lie on a disk that sleeps.
        """
        loaded = [model.id for model in self._pool.status().models if model.state == "ready"]
        changed = await asyncio.to_thread(self._catalog.changed_signatures, loaded)
        before, self._changed = self._changed, changed
        if any(before.get(model_id) == signature for model_id, signature in changed.items()):
            await self.rescan()

    async def rescan(self) -> None:
        """Look at the disk again, and tell the pool."""
        await self._catalog.rescan()
        self._pool.rescan()

    async def _search(self, settings: Settings) -> None:
        self._catalog.adopt(await asyncio.to_thread(self._catalog.prepare, *self._where(settings)))
        self._pool.rescan()

    def _where(self, settings: Settings) -> tuple[list[Path], dict[str, Path]]:
        return resolve_roots(settings.catalog.paths, self._home), adapter_paths(settings, self._home)

    def _judge(self, new: Settings) -> Iterator[InvalidValue]:
        yield from self._judge_aliases(new, alias_targets(self._settings))
        old = self._settings.models
        for model_id, model in new.models.items():
            before = old.get(model_id)
            if model.context_length is not None and (before is None or before.context_length != model.context_length):
                yield from self._judge_context(model_id, model.context_length)
            if model.adapter is not None and (before is None or before.adapter != model.adapter):
                yield from self._judge_adapter(model_id, model.adapter)

    def _judge_aliases(self, new: Settings, known: Mapping[str, str]) -> Iterator[InvalidValue]:
        for alias, model_id in alias_targets(new).items():
            if alias not in known and self._catalog.has_id(alias):
                yield _wrong(model_id, "aliases", f"{alias!r} is the id of a model on this disk, which goes before")

    def _judge_context(self, model_id: str, tokens: int) -> Iterator[InvalidValue]:
        if not self._catalog.has(model_id):
            return
        entry = self._catalog.get(model_id)
        if entry.longest_context is None or tokens <= entry.longest_context:
            return
        words = f"{tokens} is more than the model's own context of {entry.context_length} tokens"
        if entry.longest_context != entry.context_length:
            words += f", which can be stretched to {entry.longest_context}"
        yield _wrong(model_id, "context_length", words)

    def _judge_adapter(self, model_id: str, path: str) -> Iterator[InvalidValue]:
        base_id, plus, name = model_id.rpartition("+")
        if not plus or not base_id or not name:
            yield _wrong(model_id, "adapter", f"an adapter's id is BASE+NAME, and {model_id!r} is not")
            return
        entries = {entry.id: entry for entry in self._catalog.entries()}
        if model_id in entries and entries[model_id].base is None:
            yield _wrong(model_id, "adapter", f"{model_id!r} is a whole model on this disk")
            return
        base = entries.get(base_id)
        try:
            problem = read_adapter(model_id, resolve_path(path, self._home), "settings", base_id, base).problem
        except OSError as error:
            problem = f"{path} cannot be read: {error.strerror}"
        if problem is not None:
            yield _wrong(model_id, "adapter", problem)


def _wrong(model_id: str, name: str, reason: str) -> InvalidValue:
    key = format_path(("models", model_id, name))
    return InvalidValue(f"{key}: {reason}", param=key, hint=f"mlxctl model show {model_id}")
