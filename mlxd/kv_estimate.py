"""The KV of one sequence before a model is loaded: its own caches tell what they keep, else it is a guess.

Owns `cache/kv.json`, the answers by config, so that a model is asked once. Must not import mlx: a process builds the
model (`engine/process_child.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Iterator
from enum import Enum

import mlxd
from mlxd.atomic_file import AtomicFile
from mlxd.engine.config import LAYER_KEYS, Config, first_int
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.process import Bounds, Processes, read_shape
from mlxd.model_config import module_of


class Confidence(Enum):
    """Where a number comes from, the best first."""

    MEASURED = "measured"  # at a load of these very files
    HEADER = "header"  # computed from the files' headers and a config that is understood
    GUESS = "guess"  # the config leaves it open: a number on the safe side


# What the KV of a config is, with so many bytes of one activation; None where nobody can tell.
Ask = Callable[[Config, int], KvShape | None]

_log = logging.getLogger(__name__)
# A model of a hundred layers takes 0.1 s, the import of MLX on a busy machine seconds. CUDA's libraries take
# more than 1 GiB of addresses.
_BOUNDS = Bounds(memory_bytes=2**32)
_MOST_KEPT = 1000
_DTYPES = {2: "bfloat16", 4: "float32"}

_HEAD_KEYS = ("num_attention_heads", "n_heads", "n_head", "num_heads")
_HEAD_DIM_KEYS = ("head_dim", "global_head_dim", "v_head_dim", "hidden_size_per_head")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "model_dim")
# With nothing to go by: 4-bit models of full multi-head attention, the costliest, take a 7000th of the weights a token.
_WEIGHTS_PER_TOKEN = 7000
_LEAST_BYTES_PER_TOKEN = 1024


class KvShapes:
    """Asks models for their KV and remembers what they said. Used on worker threads."""

    def __init__(self, file: AtomicFile) -> None:
        """Keep the answers in *file*."""
        self._file = file
        self._silent: dict[str, None] = {}  # those that could not tell are asked again by the next daemon

    @contextlib.contextmanager
    def asking(self) -> Iterator[Ask]:
        """Return what answers; the process that it takes ends afterwards, and what is new goes into the file."""
        kept = self._read()
        known: dict[str, KvShape | None] = {**kept, **self._silent}
        processes = Processes(_BOUNDS)

        def ask(config: Config, itemsize: int) -> KvShape | None:
            job = {"module": module_of(config), "config": config, "dtype": _DTYPES[itemsize]}
            try:
                key = hashlib.sha256(json.dumps([_versions(), job], sort_keys=True).encode()).hexdigest()[:32]
            except (RecursionError, ValueError):  # what could be read may still be too deep to write
                return None
            if key not in known:
                known[key] = processes.shape(job)
            return known[key]

        try:
            yield ask
        finally:
            processes.close()
            self._silent.update({key: None for key, shape in known.items() if shape is None})
            told = {key: shape for key, shape in known.items() if shape is not None}
            if told.keys() - kept.keys():
                self._write(told)

    def _read(self) -> dict[str, KvShape]:
        try:
            return {str(key): read_shape(shape) for key, shape in json.loads(self._file.read().data or b"{}").items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s is left aside, and models are asked anew: %s", self._file.path, error)
            return {}

    def _write(self, told: dict[str, KvShape]) -> None:
        kept = {key: [shape.groups, shape.fixed_bytes] for key, shape in list(told.items())[-_MOST_KEPT:]}
        try:
            self._file.path.parent.mkdir(parents=True, exist_ok=True)
            self._file.replace(json.dumps(kept).encode())
        except OSError as error:
            _log.warning("%s cannot be written, and models are asked again: %s", self._file.path, error)


def _versions() -> list[str]:
    """Return those of the programs of which another may answer otherwise."""
    try:
        return [mlxd.__version__, importlib.metadata.version("mlx-lm")]
    except importlib.metadata.PackageNotFoundError:  # a checkout of it
        return [mlxd.__version__]


def guess_kv(config: Config, itemsize: int, weights_bytes: int) -> KvShape:
    """Return full multi-head attention in every layer, the costliest, or without numbers a share of the weights.

    Args:
        config: the model's `config.json`.
        itemsize: bytes of one activation, which is what the KV is stored as.
        weights_bytes: of the loaded model.
    """
    n_layers, width = first_int(config, LAYER_KEYS), first_int(config, _WIDTH_KEYS)
    if n_layers is None or width is None:
        return KvShape(((max(weights_bytes // _WEIGHTS_PER_TOKEN, _LEAST_BYTES_PER_TOKEN), None),))
    widest = max((dim for key in _HEAD_DIM_KEYS if (dim := first_int(config, (key,))) is not None), default=0)
    keys_width = max(width, widest * (first_int(config, _HEAD_KEYS) or 0))
    return KvShape(((2 * n_layers * keys_width * itemsize, None),))
