"""LoRA adapters: a copy of a loaded model that shares its arrays, with an adapter's own on top. Device thread only."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters

from mlxd.engine.fault import in_words
from mlxd.engine.model_file import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from mlxd.protocol.errors import LoadFailed
from mlxd.protocol.units import count

# What mlx-lm's LoRA and DoRA layers add to the layers that they wrap.
_OWN_LEAVES = frozenset({"lora_a", "lora_b", "m"})


def put_adapter_on(base: Any, path: Path) -> tuple[Any, dict[str, mx.array]]:
    """Return a model with the adapter in folder *path*, and the parameters that are not *base*'s; nothing is read yet.

    Args:
        base: an `mlx.nn.Module` whose weights are in memory. It is not changed: the copy has modules of its own around
            the same arrays.
        path: holds `adapter_config.json` and `adapters.safetensors` as mlx-lm's training writes them.

    Raises:
        LoadFailed: the configuration lacks something, or asks for more than the weights are.
        Exception: whatever mlx-lm raises for an adapter of another model.
    """
    before = {name for name, _ in _parameters(base)}
    model = copy.deepcopy(base)
    try:
        load_adapters(model, str(path))
    except (AttributeError, KeyError, TypeError) as error:
        raise LoadFailed(f"{path / ADAPTER_CONFIG_FILE} cannot be used: {in_words(error)}") from error
    # New layers begin in training mode, in which dropout makes every answer another one.
    model.eval()
    stored = set(mx.load(str(path / ADAPTER_FILE)))
    replaced = stored & before  # an adapter of whole layers
    own = {
        name: array
        for name, array in _parameters(model)
        if name in replaced or (name not in before and name.rpartition(".")[2] in _OWN_LEAVES)
    }
    missing = [name for name in own if name not in stored]
    if missing:  # of any size that the configuration says, which the pool does not know
        raise LoadFailed(
            f"{path / ADAPTER_FILE} lacks {len(missing)} of the {count(len(own), 'tensor')} that {ADAPTER_CONFIG_FILE}"
            f" asks for, {missing[0]} among them"
        )
    return model, own


def _parameters(model: Any) -> list[tuple[str, mx.array]]:
    return cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))
