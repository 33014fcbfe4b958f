"""The models on disk and their names: ids, aliases, adapters. The one owner of what a name stands for.

Must not import mlx or aiohttp. `scan` blocks (it reads small files). The daemon has `rescan`, which reads on a worker
thread and changes the index on the event loop: between two awaits a reader sees one index.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlxd import model_config
from mlxd.engine.config import Config
from mlxd.engine.model_file import shown_text
from mlxd.engine.vector import Pooling
from mlxd.kv_estimate import Ask, KvShapes
from mlxd.model_folder import (
    ModelEntry,
    Signature,
    adapter_base,
    read_adapter,
    read_model,
    read_signature,
    unreadable,
)
from mlxd.model_search import find_folders, is_adapter, is_hub_snapshot
from mlxd.protocol.errors import ModelNotFound
from mlxd.protocol.paths import Home
from mlxd.protocol.settings import INHERIT, ModelSettings, Settings

__all__ = [
    "Catalog",
    "ModelEntry",
    "ModelRef",
    "Prepared",
    "adapter_paths",
    "context_limit",
    "nearest_names",
    "pooling_of",
    "resolve_path",
    "resolve_roots",
]

Index = dict[str, ModelEntry]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a search has found, and where it searched."""

    roots: tuple[Path, ...]
    adapters: Mapping[str, Path]
    index: Index


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a client means by the name of a model, resolved once, when its request comes.

    Attributes:
        asked: the name, as the client calls it: an id or an alias.
        id: of the model; the name itself where no model has it.
        entry: the model on disk; None where none has the id.
        settings: of `[models."ID"]`; None where there are none.
    """

    asked: str
    id: str
    entry: ModelEntry | None
    settings: ModelSettings | None

    @property
    def is_embedding(self) -> bool:
        """Whether it makes vectors and no text."""
        return self.entry is not None and self.entry.kind == "embedding"


class Catalog:
    """The index of the models under some roots; empty until the first `scan`."""

    def __init__(
        self,
        roots: Sequence[Path],
        own_root: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
        shapes: KvShapes | None = None,
    ) -> None:
        """Search *roots* in this order.

        Args:
            roots: folders of models.
            own_root: models under it have the source "mlxd".
            adapters: `BASE+NAME` → folder of those that lie elsewhere.
            shapes: tells the KV of models; without it all of it is guessed.
        """
        self._roots = tuple(roots)
        self._own_root = own_root
        self._shapes = shapes
        self._adapters: Mapping[str, Path] = {} if adapters is None else dict(adapters)
        self._aliases: Mapping[str, str] = {}
        self._index: Index = {}

    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Let these names stand for these ids, from now on; a model on disk of such a name goes before."""
        self._aliases = dict(aliases)

    def scan(self) -> None:
        """Read all roots again. Blocks; never raises for what it finds on disk."""
        self._index = self._read(self._roots, self._adapters)

    async def rescan(self) -> None:
        """Read all roots again on a worker thread; never raises for what it finds on disk."""
        roots, adapters = self._roots, self._adapters
        index = await asyncio.to_thread(self._read, roots, adapters)
        if (roots, adapters) == (self._roots, self._adapters):  # else others have been searched and adopted meanwhile
            self._index = index

    def prepare(self, roots: Sequence[Path], adapters: Mapping[str, Path]) -> Prepared:
        """Read these roots and adapters, for `adopt`. Blocks, changes nothing."""
        return Prepared(tuple(roots), dict(adapters), self._read(roots, adapters))

    def adopt(self, prepared: Prepared) -> None:
        """Search where *prepared* did from now on, and know what it found."""
        self._roots, self._adapters, self._index = prepared.roots, prepared.adapters, prepared.index

    def _read(self, roots: Sequence[Path], defined: Mapping[str, Path]) -> Index:
        with contextlib.nullcontext(_guess) if self._shapes is None else self._shapes.asking() as ask:
            return self._search(roots, defined, ask)

    def _search(self, roots: Sequence[Path], defined: Mapping[str, Path], ask: Ask) -> Index:
        runnable = model_config.find_runnable()
        index: Index = {}
        adapters: list[tuple[str, Path, str]] = []
        for root in roots:
            for model_id, folder in find_folders(root):
                source = self._source(root, folder)
                if is_adapter(folder):
                    adapters.append((model_id, folder, source))
                elif not _is_hidden(index, model_id, folder):
                    _add(index, partial(read_model, model_id, folder, source, runnable, ask), model_id, folder, source)
        models = dict(index)
        for adapter_id, folder, source, base_id in _all_adapters(models, defined, adapters):
            if not _is_hidden(index, adapter_id, folder):
                read = partial(read_adapter, adapter_id, folder, source, base_id, models.get(base_id))
                _add(index, read, adapter_id, folder, source, base_id)
        return dict(sorted(index.items()))

    def entries(self) -> tuple[ModelEntry, ...]:
        """Return all models, sorted by id."""
        return tuple(self._index.values())

    def get(self, model_id: str) -> ModelEntry:
        """Return the model of exactly this id.

        Raises:
            ModelNotFound: with the nearest names in the message.
        """
        entry = self._index.get(model_id)
        if entry is not None:
            return entry
        nearest = self.nearest(model_id)
        message = f"there is no model {model_id!r}"
        if model_id in self._aliases:
            message = f"{model_id!r} is an alias of {self._aliases[model_id]!r}, which is not on this disk"
        elif nearest:
            message += f"; the nearest names are {', '.join(nearest)}"
        raise ModelNotFound(message, hint="mlxctl model list", param="model", data={"nearest": nearest})

    def ref(self, name: str, settings: Settings) -> ModelRef:
        """Return what a client means by *name* under these settings; there may be no such model here."""
        model_id = self.alias_target(name)
        return ModelRef(name, model_id, self._index.get(model_id), settings.models.get(model_id))

    def resolve(self, name: str) -> ModelEntry:
        """Return the model that a client means by *name*: its id, or an alias.

        Raises:
            ModelNotFound: with the nearest names in the message.
        """
        target = self.alias_target(name)
        return self.get(target if target in self._index else name)

    def alias_target(self, name: str) -> str:
        """Return the id that *name* is an alias of, or *name* itself."""
        return name if name in self._index else self._aliases.get(name, name)

    def has_id(self, name: str) -> bool:
        """Tell whether there is a model with this id, aliases aside."""
        return name in self._index

    def has(self, name: str) -> bool:
        """Tell whether there is a model with this id or alias."""
        return self.alias_target(name) in self._index

    def changed_signatures(self, model_ids: Iterable[str]) -> dict[str, Signature]:
        """Return what the folders of these models hold now, where that is not what the last search found. Blocks."""
        changed = {}
        for model_id in model_ids:
            entry = self._index.get(model_id)
            with contextlib.suppress(OSError):  # a disk that cannot be read tells nothing
                if entry is not None and (signature := read_signature(entry.path)) != entry.signature:
                    changed[model_id] = signature
        return changed

    def aliases(self) -> dict[str, ModelEntry]:
        """Return the aliases that lead to a model on disk."""
        return {
            alias: self._index[target]
            for alias, target in self._aliases.items()
            if alias not in self._index and target in self._index
        }

    def nearest(self, name: str) -> list[str]:
        """Return up to three names that *name* may have meant, the likeliest first."""
        return nearest_names(name, [*self._index, *self.aliases()])

    def _source(self, root: Path, folder: Path) -> str:
        if is_hub_snapshot(folder):
            return "huggingface"
        return "mlxd" if root == self._own_root else "folder"


def resolve_roots(paths: Iterable[str], home: Home) -> list[Path]:
    """Return the folders that `catalog.paths` means; see `resolve_path`."""
    return [resolve_path(path, home) for path in paths]


def resolve_path(path: str, home: Home) -> Path:
    """Return the folder that a setting means: `~` is the user's home, a relative path lies in MLXD_HOME."""
    return Path(os.path.normpath(home.root / Path(path).expanduser()))


def adapter_paths(settings: Settings, home: Home) -> dict[str, Path]:
    """Return id → folder of the adapters that the settings define."""
    return {
        model_id: resolve_path(model.adapter, home)
        for model_id, model in settings.models.items()
        if model.adapter is not None
    }


def context_limit(settings: Settings, entry: ModelEntry) -> int | None:
    """Return the context that the model has when it is loaded: the setting's, at most its longest; None if unknown."""
    model = settings.models.get(entry.id)
    wanted = None if model is None else model.context_length
    if wanted is None or entry.longest_context is None:
        return entry.context_length if wanted is None else wanted
    return min(wanted, entry.longest_context)


def pooling_of(settings: Settings, model_id: str) -> Pooling | None:
    """Return the pooling that the settings give a model; None leaves it to the model's folder."""
    model = settings.models.get(model_id)
    return None if model is None or model.pooling == INHERIT else Pooling(model.pooling)


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three of *known* that look like *name*, by spelling or by containing it, whatever the case."""
    by_key: dict[str, str] = {}
    for known_name in known:
        by_key[known_name.lower()] = known_name
        by_key.setdefault(known_name.lower().rpartition("/")[2], known_name)
    wanted = name.lower()
    keys = difflib.get_close_matches(wanted, by_key, n=3, cutoff=0.5)
    if wanted:
        keys += sorted(key for key in by_key if wanted in key)
    return list(dict.fromkeys(by_key[key] for key in keys))[:3]


def _guess(config: Config, itemsize: int) -> None:
    """Tell nothing of a model's KV."""


def _all_adapters(
    models: Index, defined: Mapping[str, Path], found: Iterable[tuple[str, Path, str]]
) -> Iterator[tuple[str, Path, str, str]]:
    """Yield (id, folder, source, base id) of adapters: those of the settings first, then those that were found."""
    for adapter_id, folder in defined.items():
        yield adapter_id, folder, "settings", adapter_id.rpartition("+")[0]
    for folder_id, folder, source in found:
        base_id = _base_id(models, adapter_base(folder))
        yield f"{base_id}+{folder_id.rpartition('/')[2]}", folder, source, base_id


def _add(
    index: Index, read: Callable[[], ModelEntry], model_id: str, folder: Path, source: str, base_id: str | None = None
) -> None:
    """Add what *read* returns; a folder that cannot be read is a model with a problem, and hurts no other."""
    try:
        index[model_id] = read()
    except FileNotFoundError:
        _log.info("the model folder %s went away while it was read", folder)
    except OSError as error:
        _log.warning("the model folder %s cannot be read: %s", folder, error)
        index[model_id] = unreadable(model_id, folder, source, f"it cannot be read: {error.strerror}", base_id)
    except Exception as error:  # noqa: BLE001 whatever somebody has written into a file is no reason to find no other
        _log.exception("the model folder %s cannot be understood", folder)
        problem = f"it cannot be understood ({type(error).__name__}); the log has more"
        index[model_id] = unreadable(model_id, folder, source, problem, base_id)


def _is_hidden(index: Index, model_id: str, folder: Path) -> bool:
    if model_id not in index:
        return False
    if index[model_id].path != folder:
        _log.info("model %s in %s is hidden by the one in %s", model_id, folder, index[model_id].path)
    return True


def _base_id(models: Index, named: str) -> str:
    """Return the id of the model that an adapter's config names by its id or by its path."""
    if named in models or not named:
        return named or "unknown"
    try:
        path = Path(named).expanduser()
        if not path.is_absolute():
            return shown_text(named)
        for model_id, entry in models.items():
            if path == entry.path or path.resolve() == entry.path.resolve():
                return model_id
    except (OSError, ValueError, RuntimeError):  # somebody else's home, a link to itself, a name that is none
        return shown_text(named)
    return shown_text(path.name)
