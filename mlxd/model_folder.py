"""Read a model's folder, or a folder of LoRA weights, without mlx.

Everything in here blocks. What a file contains is the `problem` of its model; only OSError is raised.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd import model_config
from mlxd.engine.config import Config, parts_problem
from mlxd.engine.encoder import workspace
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.model_file import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    MOST_CONFIG_BYTES,
    MOST_FILE_BYTES,
    WEIGHTS,
    BadFile,
    file_problem,
    is_loaded,
    nested_weights,
    open_regular,
    read_object,
    shown_text,
)
from mlxd.engine.safetensors_header import Tensor, read_tensors
from mlxd.kv_estimate import Ask, Confidence, guess_kv

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
INDEX_FILE = "model.safetensors.index.json"

# Name, size and mtime of files.
Signature = tuple[tuple[str, int, int], ...]
# What lies in a folder, by name; links are followed.
Files = dict[str, os.stat_result]

_log = logging.getLogger(__name__)
# The sum of several files that are all holes may be more than a message can carry.
_MOST_BYTES = 2**62
_SHARD = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model as the disk has it."""

    id: str
    path: Path
    kind: str  # "text", "embedding", "unknown"
    model_type: str | None
    weights_bytes: int  # of the loaded tensors, by the safetensors headers
    disk_bytes: int
    context_length: int | None  # its own
    longest_context: int | None  # that a setting may give it
    kv: KvShape  # an estimate; the engine measures it
    kv_confidence: Confidence  # of that estimate
    quantization: str | None  # "4-bit group 32"
    source: str  # "mlxd" (the daemon's own folder), "huggingface", "folder" or "settings"
    problem: str | None  # why it cannot be served; None: it can
    base: str | None = None  # of an adapter: the id of the model that it is put on
    signature: Signature = ()  # name, size and mtime of the files that a load reads


def read_model(model_id: str, folder: Path, source: str, runnable: model_config.Runnable, ask: Ask) -> ModelEntry:
    """Return the entry of a whole model.

    Args:
        model_id: its id.
        folder: where it lies.
        source: what found it.
        runnable: the model types that can be served.
        ask: tells the KV of a sound model.
    """
    files = _list_files(folder)
    config, config_problem = _read_json(folder / CONFIG_FILE)
    kind, kind_problem = model_config.kind_of(config, runnable)
    tensors, weights_problem = _read_weights(folder, files, kind)
    # Every activation passes through these; see `activation_itemsize`.
    dtypes = [tensor.dtype for tensor in tensors if tensor.name.endswith(("norm.weight", ".scales"))]
    itemsize = model_config.activation_itemsize(config, dtypes)
    weights_bytes = min(model_config.loaded_bytes(config, tensors), _MOST_BYTES)
    context = model_config.context_length(config)
    problems = (
        config_problem,
        kind_problem,
        _files_problem(files),
        weights_problem,
        parts_problem(config, len(tensors)),
        model_config.fp8_problem(config, tensors),
        _tokenizer_problem(folder, files, config),
    )
    problem = next((problem for problem in problems if problem is not None), None)
    if kind == "embedding":
        kv: KvShape | None = workspace(config)
    else:
        kv = ask(config, itemsize) if problem is None else None
    return ModelEntry(
        id=model_id,
        path=folder,
        kind=kind,
        model_type=shown_text(config["model_type"]) if isinstance(config.get("model_type"), str) else None,
        weights_bytes=weights_bytes,
        disk_bytes=_disk_bytes(files),
        context_length=context.own,
        longest_context=context.longest,
        kv=guess_kv(config, itemsize, weights_bytes) if kv is None else kv,
        kv_confidence=Confidence.GUESS if kv is None else Confidence.HEADER,
        quantization=model_config.quantization_of(config),
        source=source,
        problem=problem,
        signature=_signature(files),
    )


def read_adapter(adapter_id: str, folder: Path, source: str, base_id: str, base: ModelEntry | None) -> ModelEntry:
    """Return the entry of an adapter on the model *base_id*, which is *base* if it is on this disk."""
    weights_bytes = 0
    files: Files = {}
    try:
        files = _list_files(folder)
        weights_bytes, problem = _read_adapter_weights(folder, files)
    except (FileNotFoundError, NotADirectoryError):
        problem = f"there is no folder {folder}"
    if problem is None:
        problem = _base_problem(base_id, base)
    return ModelEntry(
        id=adapter_id,
        path=folder,
        kind="unknown" if base is None else base.kind,
        model_type=None if base is None else base.model_type,
        weights_bytes=weights_bytes,
        disk_bytes=_disk_bytes(files),
        context_length=None if base is None else base.context_length,
        longest_context=None if base is None else base.longest_context,
        kv=KvShape(()) if base is None else base.kv,
        kv_confidence=Confidence.GUESS if base is None else base.kv_confidence,
        quantization=None,
        source=source,
        problem=problem,
        base=base_id,
        signature=_signature(files),
    )


def unreadable(model_id: str, folder: Path, source: str, problem: str, base_id: str | None = None) -> ModelEntry:
    """Return the entry of a folder of which nothing is known but its problem."""
    return ModelEntry(
        id=model_id,
        path=folder,
        kind="unknown",
        model_type=None,
        weights_bytes=0,
        disk_bytes=0,
        context_length=None,
        longest_context=None,
        kv=KvShape(()),
        kv_confidence=Confidence.GUESS,
        quantization=None,
        source=source,
        problem=problem,
        base=base_id,
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


def _read_adapter_weights(folder: Path, files: Files) -> tuple[int, str | None]:
    """Return the bytes of an adapter's weights, and why they cannot be used, if so."""
    if ADAPTER_CONFIG_FILE not in files:
        return 0, f"there is no {ADAPTER_CONFIG_FILE} in {folder}"
    config, problem = _read_json(folder / ADAPTER_CONFIG_FILE)
    is_ours = config.get("fine_tune_type") == "full" or isinstance(config.get("lora_parameters"), dict)
    if problem is None and (not is_ours or not isinstance(config.get("num_layers"), int)):
        problem = f"{ADAPTER_CONFIG_FILE} is not mlx-lm's: it has no lora_parameters and num_layers"
    if ADAPTER_FILE not in files:
        return 0, problem or f"no weights: there is no {ADAPTER_FILE}"
    try:
        return sum(tensor.n_bytes for tensor in read_tensors(folder / ADAPTER_FILE)), problem
    except BadFile as error:
        return 0, problem or str(error)
    except OSError as error:
        return 0, problem or f"{ADAPTER_FILE} cannot be read: {error.strerror}"


def _list_files(folder: Path) -> Files:
    found: Files = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found[entry.name] = entry.stat()
            except OSError:
                continue  # a link to nothing, or to itself, is as good as absent
    return dict(sorted(found.items()))


def _disk_bytes(files: Files) -> int:
    return min(sum(file.st_size for file in files.values() if stat.S_ISREG(file.st_mode)), _MOST_BYTES)


def read_signature(folder: Path) -> Signature:
    """Return name, size and mtime of the files that a load reads; nothing for a folder that is not there."""
    try:
        return _signature(_list_files(folder))
    except FileNotFoundError:
        return ()


def _signature(files: Files) -> Signature:
    """Return what tells a model from a changed one; a changed README is no other model."""
    return tuple(
        (name, file.st_size, file.st_mtime_ns)
        for name, file in files.items()
        if is_loaded(name) and stat.S_ISREG(file.st_mode)
    )


def _files_problem(files: Files) -> str | None:
    """Return which file a load could not read, or not to its end."""
    problems = (file_problem(name, file) for name, file in files.items() if is_loaded(name))
    return next((problem for problem in problems if problem is not None), None)


def _tokenizer_problem(folder: Path, files: Files, config: Config) -> str | None:
    if TOKENIZER_CONFIG_FILE not in files:
        return None
    try:
        with open_regular(folder / TOKENIZER_CONFIG_FILE) as file:
            if b'"auto_map"' not in file.read(MOST_CONFIG_BYTES):  # parsing them all would cost more than the rest
                return None
    except (BadFile, OSError):
        return None  # said already
    return model_config.tokenizer_problem(config, _read_json(folder / TOKENIZER_CONFIG_FILE)[0])


def _read_json(path: Path, most_bytes: int = MOST_CONFIG_BYTES) -> tuple[dict[str, Any], str | None]:
    """Return the object in the file, or an empty one and what is wrong with it."""
    try:
        return read_object(path, most_bytes), None
    except BadFile as error:
        return {}, str(error)
    except OSError as error:
        return {}, f"{path.name} cannot be read: {error.strerror}"


def _read_weights(folder: Path, files: Files, kind: str) -> tuple[list[Tensor], str | None]:
    """Return the tensors that would be loaded, and what is missing or broken, if anything."""
    present = fnmatch.filter(files, WEIGHTS)
    missing = _missing_shards(folder, files, present)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problem: str | None = f"weights are missing: {shown_text(missing[0])}{more}"
    else:
        problem = None if present else f"no weights: there is no {WEIGHTS}"
    tensors: list[Tensor] = []
    try:
        for path in (folder / name for name in present) if kind != "embedding" else nested_weights(folder):
            tensors += read_tensors(path)
    except BadFile as error:
        problem = str(error)
    except OSError as error:
        name = "what holds the weights" if error.filename is None else Path(error.filename).name
        problem = f"{name} cannot be read: {error.strerror}"
    return tensors, problem


def _missing_shards(folder: Path, files: Files, present: Iterable[str]) -> list[str]:
    """Return the files that the index, or the numbering of the shards, names and the folder lacks."""
    named: set[str] = set()
    index, problem = _read_json(folder / INDEX_FILE, MOST_FILE_BYTES) if INDEX_FILE in files else ({}, None)
    if problem is not None:
        return [f"{INDEX_FILE} (unreadable)"]
    weight_map = index.get("weight_map")
    if isinstance(weight_map, dict):
        named.update(name for name in weight_map.values() if isinstance(name, str))
    shards = (_SHARD.fullmatch(name) for name in present)
    for stem, count in {(shard["stem"], int(shard["count"])) for shard in shards if shard is not None}:
        named.update(f"{stem}-{part:05d}-of-{count:05d}.safetensors" for part in range(1, count + 1))
    return sorted(named.difference(present))
