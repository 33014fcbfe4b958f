"""Model folders: how they are laid out and named on disk, and what can be read of one without mlx.

`NAME` and `ORG/NAME` folders, the Hugging Face cache's layout, and folders of LoRA adapters in any of them. Everything
in here blocks; nothing raises for what it finds but OSError.
"""

from __future__ import annotations

import json
import logging
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd import model_config
from mlxd.engine.encoder import workspace
from mlxd.engine.kv_shape import KvShape
from mlxd.kv_estimate import Confidence, KvEstimate, estimate_kv
from mlxd.safetensors_header import BadSafetensors, Tensor, read_tensors

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapters.safetensors"
HUB_PREFIX = "models--"
INDEX_FILE = "model.safetensors.index.json"

# Name, size and mtime of files.
Signature = tuple[tuple[str, int, int], ...]

_log = logging.getLogger(__name__)
_SHARD = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors")
# What a load reads; a changed README is no other model.
_LOADED_SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken"})


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
    source: str  # "mlxd" (the daemon's own folder), "huggingface", "folder" or "settings"
    problem: str | None  # why it cannot be served; None: it can
    base: str | None = None  # of an adapter: the id of the model that it is put on
    signature: Signature = ()  # name, size and mtime of the files that a load reads


def find_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (id, folder) of every folder under *root* that has the config of a model or of an adapter."""
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


def is_adapter(folder: Path) -> bool:
    """Tell a folder of LoRA weights from one of a whole model; fused models keep the config of their adapter."""
    return not _probe(folder / CONFIG_FILE, stat.S_ISREG)


def is_hub_snapshot(folder: Path) -> bool:
    """Tell whether the folder lies in a Hugging Face cache."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(HUB_PREFIX)


def read_model(model_id: str, folder: Path, source: str, runnable: model_config.Runnable) -> ModelEntry:
    """Return the entry of a whole model; *runnable* are the model types that can be served."""
    config, config_problem = _read_json(folder / CONFIG_FILE)
    kind, kind_problem = model_config.kind_of(config, runnable)
    tensors, weights_problem = _read_weights(folder)
    # Every activation passes through these; see `activation_itemsize`.
    dtypes = [tensor.dtype for tensor in tensors if tensor.name.endswith(("norm.weight", ".scales"))]
    itemsize = model_config.activation_itemsize(config, dtypes)
    weights_bytes = sum(tensor.n_bytes for tensor in tensors)
    if kind == "embedding":
        kv = KvEstimate(workspace(config), Confidence.HEADER)
    else:
        kv = estimate_kv(config, itemsize, weights_bytes)
    problems = (config_problem, kind_problem, weights_problem)
    return ModelEntry(
        id=model_id,
        path=folder,
        kind=kind,
        model_type=config["model_type"] if isinstance(config.get("model_type"), str) else None,
        weights_bytes=weights_bytes,
        disk_bytes=_disk_bytes(folder),
        context_length=model_config.context_length(config),
        kv=kv.shape,
        kv_confidence=kv.confidence,
        quantization=model_config.quantization_of(config),
        source=source,
        problem=next((problem for problem in problems if problem is not None), None),
        signature=read_signature(folder),
    )


def read_adapter(adapter_id: str, folder: Path, source: str, base_id: str, base: ModelEntry | None) -> ModelEntry:
    """Return the entry of an adapter on the model *base_id*, which is *base* if it is on this disk."""
    weights_bytes = disk_bytes = 0
    signature: Signature = ()
    if folder.is_dir():
        weights_bytes, problem = _read_adapter_weights(folder)
        disk_bytes, signature = _disk_bytes(folder), read_signature(folder)
    else:
        problem = f"there is no folder {folder}"
    if problem is None:
        problem = _base_problem(base_id, base)
    return ModelEntry(
        id=adapter_id,
        path=folder,
        kind="unknown" if base is None else base.kind,
        model_type=None if base is None else base.model_type,
        weights_bytes=weights_bytes,
        disk_bytes=disk_bytes,
        context_length=None if base is None else base.context_length,
        kv=KvShape(()) if base is None else base.kv,
        kv_confidence=Confidence.GUESS if base is None else base.kv_confidence,
        quantization=None,
        source=source,
        problem=problem,
        base=base_id,
        signature=signature,
    )


def _base_problem(base_id: str, base: ModelEntry | None) -> str | None:
    if base is None:
        return f"its base model {base_id!r} is not on this disk"
    if base.kind == "embedding":
        return f"its base model {base_id!r} makes embeddings; adapters are for text models"
    return None if base.problem is None else f"its base model {base_id!r} cannot be served: {base.problem}"


def adapter_base(folder: Path) -> str:
    """Return what an adapter's config names as the model that it was trained on: an id, a path, or nothing."""
    config, _ = _read_json(folder / ADAPTER_CONFIG_FILE)
    named = (config.get(key) for key in ("model", "base_model_name_or_path"))
    return next((name for name in named if isinstance(name, str)), "")


def _read_adapter_weights(folder: Path) -> tuple[int, str | None]:
    """Return the bytes of an adapter's weights, and why they cannot be used, if so."""
    if not _probe(folder / ADAPTER_CONFIG_FILE, stat.S_ISREG):
        return 0, f"there is no {ADAPTER_CONFIG_FILE} in {folder}"
    config, problem = _read_json(folder / ADAPTER_CONFIG_FILE)
    is_ours = config.get("fine_tune_type") == "full" or isinstance(config.get("lora_parameters"), dict)
    if problem is None and (not is_ours or not isinstance(config.get("num_layers"), int)):
        problem = f"{ADAPTER_CONFIG_FILE} is not mlx-lm's: it has no lora_parameters and num_layers"
    if not _probe(folder / ADAPTER_FILE, stat.S_ISREG):
        return 0, problem or f"no weights: there is no {ADAPTER_FILE}"
    try:
        return sum(tensor.n_bytes for tensor in read_tensors(folder / ADAPTER_FILE)), problem
    except BadSafetensors as error:
        return 0, problem or str(error)


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def read_signature(folder: Path) -> Signature:
    """Return name, size and mtime of the files that a load reads; nothing for a folder that is not there."""
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix in _LOADED_SUFFIXES and path.is_file())
    except FileNotFoundError:
        return ()
    return tuple((path.name, (found := path.stat()).st_size, found.st_mtime_ns) for path in files)


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
    return any(_probe(folder / name, stat.S_ISREG) for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE))


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
