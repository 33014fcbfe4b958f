"""LoRA adapters on disk for the tiny model, as mlx-lm's training writes them. Written with numpy alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

KEYS = ("self_attn.q_proj", "self_attn.v_proj")


def write_adapter(
    folder: Path,
    base: Path | str,
    *,
    seed: int = 0,
    layers: int = 2,
    rank: int = 4,
    width: int = 64,
    query_width: int | None = None,
    kv_width: int = 32,
) -> int:
    """Write an adapter for a tiny model that changes what it says; return the bytes of its weights.

    Args:
        folder: where to; made if missing.
        base: what `adapter_config.json` names as the model that it was trained on: a path or an id.
        seed: of the random weights.
        layers: of the base model; all are adapted.
        rank: of the matrices.
        width: of the base model.
        query_width: of its queries, *width* where it is not given.
        kv_width: of its keys and values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "model": str(base),
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": {"rank": rank, "scale": 20.0, "dropout": 0.5, "keys": list(KEYS)},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    weights = {}
    for layer in range(layers):
        for key, outputs in zip(KEYS, (width if query_width is None else query_width, kv_width), strict=True):
            name = f"model.layers.{layer}.{key}"
            weights[f"{name}.lora_a"] = rng.standard_normal((width, rank)).astype(np.float32) * 0.1
            weights[f"{name}.lora_b"] = rng.standard_normal((rank, outputs)).astype(np.float32) * 0.1
    save_file(weights, folder / "adapters.safetensors", {"format": "mlx"})
    return sum(weight.nbytes for weight in weights.values())
