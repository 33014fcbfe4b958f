"""Model folders as the disk may have them, written without mlx: any config, any tensors, all zeros."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LLAMA_CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 100,
}
_ITEMSIZES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4}
TENSORS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "model.embed_tokens.weight": ("F32", (100, 64)),
    "model.norm.weight": ("F32", (64,)),
}
TENSORS_BYTES = 4 * (100 * 64 + 64)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]] = TENSORS) -> None:
    """Write a file of zeros with these names, types and shapes."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + _ITEMSIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(offset))


def write_model(folder: Path, config: Mapping[str, Any] = LLAMA_CONFIG) -> Path:
    """Make a folder with a config and one file of weights; return it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    write_safetensors(folder / "model.safetensors")
    return folder


def write_repository(folder: Path) -> None:
    """Write a repository of the Hugging Face cache with two snapshots and their refs."""
    for commit in ("abc", "def"):
        write_model(folder / "snapshots" / commit)
    (folder / "refs" / "pr").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "refs" / "pr" / "1").write_text("def")
