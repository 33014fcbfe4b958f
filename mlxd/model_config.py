"""What a model's `config.json` says: its kind, context, quantization; `kv_estimate.py` has what its KV costs.

Must not import mlx or mlx_lm: which model types mlx-lm runs is read from the file names of the installed package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Config = Mapping[str, Any]

# `mlx_lm.utils.MODEL_REMAPPING` of the minor version that pyproject.toml allows; a test compares them.
REMAPPED_TYPES = {
    "mistral": "llama",
    "llava": "mistral3",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
    "gemma4_unified": "gemma4",
    "deepseek_v41_text": "deepseek_v41",
}
# Encoders: they make vectors, not text.
EMBEDDING_TYPES = frozenset(
    {"bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert", "nomic_bert", "albert", "camembert"}
)

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")

_ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


def runnable_types() -> frozenset[str]:
    """Return the model types that the installed mlx-lm has a file for; empty when it is not installed."""
    spec = importlib.util.find_spec("mlx_lm")  # of a top-level package: imports nothing
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return frozenset(file.stem for folder in folders for file in Path(folder, "models").glob("*.py"))


def kind_of(config: Config, runnable: frozenset[str]) -> tuple[str, str | None]:
    """Return the kind ("text", "embedding" or "unknown") and why the model cannot be served, None if it can."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return "unknown", "config.json names no model_type"
    if model_type in EMBEDDING_TYPES:
        return "embedding", f"an embedding model ({model_type}); only text models can be served"
    if REMAPPED_TYPES.get(model_type, model_type) not in runnable:
        return "unknown", f"mlx-lm cannot run the model type {model_type!r}"
    if config.get("model_file") is not None:
        return "text", "it needs code of its own (model_file in config.json), which is never run"
    return "text", None


def context_length(config: Config) -> int | None:
    """Return the most tokens of prompt and answer together, None when the config does not say."""
    return first_int(config, _CONTEXT_KEYS)


def quantization_of(config: Config) -> str | None:
    """Return words for the quantization: `4-bit group 32`, `4-bit group 32 mxfp4`, `fp8`; None for none."""
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "bits" in quantization:
        words = f"{quantization['bits']}-bit group {quantization.get('group_size', '?')}"
        mode = quantization.get("mode", "affine")
        return words if mode == "affine" else f"{words} {mode}"
    foreign = field_of(config, "quantization_config")
    if isinstance(foreign, dict) and "quant_method" in foreign:
        return str(foreign["quant_method"])
    return None


def activation_itemsize(config: Config, norm_dtypes: Iterable[str]) -> int:
    """Return the bytes of one activation, which is what the KV is stored as.

    Args:
        config: its `torch_dtype` (or `dtype`) counts where the tensors do not tell.
        norm_dtypes: safetensors types of the norms' weights and the quantization's scales: every activation passes
            through them and takes the widest.
    """
    widest = max(({"F32": 4, "F16": 2, "BF16": 2}.get(dtype, 0) for dtype in norm_dtypes), default=0)
    if widest:
        return widest
    named = field_of(config, "torch_dtype") or field_of(config, "dtype")
    return _ITEMSIZES.get(str(named), 4)


def field_of(config: Config, key: str) -> Any:
    """Return the value at the top or, in configs of several modalities, under `text_config`; None if absent."""
    if config.get(key) is not None:
        return config[key]
    text = config.get("text_config")
    return text.get(key) if isinstance(text, dict) else None


def first_int(config: Config, keys: Iterable[str]) -> int | None:
    """Return the first positive whole number that one of the keys has; None if none has."""
    for key in keys:
        value = field_of(config, key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
