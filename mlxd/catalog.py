"""The models on disk: ids, sizes, kinds. The one owner of how model folders are laid out and named.

Must not import mlx or aiohttp. `scan` blocks (it reads small files), so the daemon runs it on a worker thread; the
index is swapped in one assignment, so that readers on the event loop see either the old or the new one.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd import model_config
from mlxd.engine.base import KvShape
from mlxd.kv_estimate import Confidence, estimate_kv
from mlxd.protocol.errors import ModelNotFound
from mlxd.protocol.paths import Home
from mlxd.safetensors_header import BadSafetensors, Tensor, read_tensors

HUB_PREFIX = "models--"
INDEX_FILE = "model.safetensors.index.json"

_log = logging.getLogger(__name__)
_SHARD = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model as the disk has it."""

    id: str
    path: Path
    kind: str  # "text", "embedding", "unknown"
    model_type: str | None
    weights_bytes: int  # of the tensors' data, by the safetensors headers
    disk_bytes: int
    context_length: int | None
    kv: KvShape  # an estimate; the engine measures it
    kv_confidence: Confidence  # of that estimate
    quantization: str | None  # "4-bit group 32"
    source: str  # "mlxd" (the daemon's own folder), "huggingface" or "folder"
    problem: str | None  # why it cannot be served; None: it can


class Catalog:
    """The index of the models under some roots; empty until the first `scan`."""

    def __init__(self, roots: Sequence[Path], own_root: Path | None = None) -> None:
        """Search *roots* in this order; models under *own_root* have the source "mlxd"."""
        self._roots = tuple(roots)
        self._own_root = own_root
        self._index: dict[str, ModelEntry] = {}

    def set_roots(self, roots: Sequence[Path]) -> None:
        """Search these from the next `scan` on."""
        self._roots = tuple(roots)

    def scan(self) -> None:
        """Read all roots again. Blocks; never raises for what it finds on disk."""
        runnable = model_config.runnable_types()
        index: dict[str, ModelEntry] = {}
        for root in self._roots:
            for model_id, folder in _folders(root):
                if model_id in index:
                    _log.info("model %s in %s is hidden by the one in %s", model_id, folder, index[model_id].path)
                    continue
                try:
                    index[model_id] = _read_entry(model_id, folder, self._source(root, folder), runnable)
                except OSError as error:
                    _log.warning("skipped the model folder %s: %s", folder, error)
        self._index = dict(sorted(index.items()))

    def entries(self) -> tuple[ModelEntry, ...]:
        """Return all models, sorted by id."""
        return tuple(self._index.values())

    def get(self, model_id: str) -> ModelEntry:
        """Return the model of exactly this id.

        Raises:
            ModelNotFound: with the nearest ids in the message.
        """
        entry = self._index.get(model_id)
        if entry is not None:
            return entry
        nearest = self.nearest(model_id)
        message = f"there is no model {model_id!r}"
        if nearest:
            message += f"; the nearest names are {', '.join(nearest)}"
        raise ModelNotFound(message, hint="mlxctl model list", param="model", data={"nearest": nearest})

    def has(self, model_id: str) -> bool:
        """Tell whether there is a model with this id."""
        return model_id in self._index

    def nearest(self, name: str) -> list[str]:
        """Return up to three ids that *name* may have meant, the likeliest first."""
        return nearest_names(name, self._index)

    def _source(self, root: Path, folder: Path) -> str:
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(HUB_PREFIX):
            return "huggingface"
        return "mlxd" if root == self._own_root else "folder"


def resolve_roots(paths: Iterable[str], home: Home) -> list[Path]:
    """Return the folders that `catalog.paths` means: `~` is the user's home, a relative path lies in MLXD_HOME."""
    return [Path(os.path.normpath(home.root / Path(path).expanduser())) for path in paths]


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


def _folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (id, folder) of every model folder under *root*: `NAME`, `ORG/NAME` and the Hugging Face cache's layout."""
    for folder in _subfolders(root):
        if folder.name.startswith(HUB_PREFIX):
            repository = folder.name.removeprefix(HUB_PREFIX).replace("--", "/")
            for suffix, snapshot in _snapshots(folder).items():
                yield repository + suffix, snapshot
        elif _has_config(folder):
            yield folder.name, folder
        else:
            for inner in _subfolders(folder):
                if _has_config(inner):
                    yield f"{folder.name}/{inner.name}", inner


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in *folder* by name; hidden ones are downloads in progress. Unreadable: logged, and none."""
    try:
        children = sorted(folder.iterdir())
    except FileNotFoundError:
        return []  # a root that does not exist yet
    except OSError as error:
        _log.warning("skipped the folder %s: %s", folder, error)
        return []
    # Names that are not UTF-8 could not be sent to any client.
    shown = (child for child in children if not child.name.startswith(".") and child.name.isprintable())
    return [child for child in shown if _probe(child, stat.S_ISDIR)]


def _has_config(folder: Path) -> bool:
    return _probe(folder / "config.json", stat.S_ISREG)


def _probe(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether *path* leads to something of that kind; what cannot be looked at does not."""
    try:
        return is_kind(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except OSError as error:
        _log.warning("skipped %s: %s", path, error)
        return False


def _snapshots(folder: Path) -> dict[str, Path]:
    """Return the served snapshots of a repository in the Hugging Face cache, by the suffix of their id.

    The one of `refs/main`, or the newest when there is none, has no suffix; other refs have `@REF`.
    """
    found = {path.name: path for path in _subfolders(folder / "snapshots") if _has_config(path)}
    if not found:
        return {}
    refs = {ref: found[commit] for ref, commit in _refs(folder / "refs") if commit in found}
    main = refs.pop("main", None)
    if main is None:
        main = max(found.values(), key=_changed_ns)
    served = {"": main}
    for ref, snapshot in refs.items():
        if snapshot not in served.values():
            served[f"@{ref}"] = snapshot
    return served


def _refs(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (ref, commit) of the files under `refs`, which may lie deeper (`refs/pr/1`)."""
    for file in sorted(folder.rglob("*")):
        try:
            if file.is_file():
                yield file.relative_to(folder).as_posix(), file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            _log.warning("skipped %s: %s", file, error)


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # it went away just now


def _read_entry(model_id: str, folder: Path, source: str, runnable: frozenset[str]) -> ModelEntry:
    config, config_problem = _read_json(folder / "config.json")
    kind, kind_problem = model_config.kind_of(config, runnable)
    tensors, weights_problem = _read_weights(folder)
    # Every activation passes through these; see `activation_itemsize`.
    dtypes = [tensor.dtype for tensor in tensors if tensor.name.endswith(("norm.weight", ".scales"))]
    itemsize = model_config.activation_itemsize(config, dtypes)
    weights_bytes = sum(tensor.n_bytes for tensor in tensors)
    kv = estimate_kv(config, itemsize, weights_bytes)
    problems = (config_problem, kind_problem, weights_problem)
    return ModelEntry(
        id=model_id,
        path=folder,
        kind=kind,
        model_type=config["model_type"] if isinstance(config.get("model_type"), str) else None,
        weights_bytes=weights_bytes,
        disk_bytes=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        context_length=model_config.context_length(config),
        kv=kv.shape,
        kv_confidence=kv.confidence,
        quantization=model_config.quantization_of(config),
        source=source,
        problem=next((problem for problem in problems if problem is not None), None),
    )


def _read_json(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the object in the file, or an empty one and what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return {}, f"{path.name} is not valid JSON: {error}"
    if not isinstance(value, dict):
        return {}, f"{path.name} does not hold a JSON object"
    return value, None


def _read_weights(folder: Path) -> tuple[list[Tensor], str | None]:
    """Return the tensors that mlx-lm would load (`model*.safetensors`), and what is missing or broken, if anything."""
    files = sorted(path for path in folder.glob("model*.safetensors") if path.is_file())
    missing = _missing_shards(folder, {path.name for path in files})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problem: str | None = f"weights are missing: {missing[0]}{more}"
    else:
        problem = None if files else "no weights: there is no model*.safetensors"
    tensors: list[Tensor] = []
    for path in files:
        try:
            tensors += read_tensors(path)
        except BadSafetensors as error:
            problem = str(error)
    return tensors, problem


def _missing_shards(folder: Path, present: set[str]) -> list[str]:
    """Return the files that the index, or the numbering of the shards, names and the folder lacks."""
    named: set[str] = set()
    index, problem = _read_json(folder / INDEX_FILE) if (folder / INDEX_FILE).is_file() else ({}, None)
    if problem is not None:
        return [f"{INDEX_FILE} (unreadable)"]
    weight_map = index.get("weight_map")
    if isinstance(weight_map, dict):
        named.update(str(name) for name in weight_map.values())
    for name in present:
        match = _SHARD.fullmatch(name)
        if match is not None:
            count = int(match["count"])
            named.update(f"{match['stem']}-{part:05d}-of-{count:05d}.safetensors" for part in range(1, count + 1))
    return sorted(named - present)
