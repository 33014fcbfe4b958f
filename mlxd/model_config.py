"""What a model's `config.json` says: its kind, context, quantization, and what its KV costs.

The KV shape is an estimate from the fields that most configs share; the engine measures it when the model is loaded.
Must not import mlx or mlx_lm: which model types mlx-lm runs is read from the file names of the installed package.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxd.engine.base import KvShape

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

# Layers of one model differ in these ways; the rest of `layer_types` counts as full attention.
_SLIDING_LAYERS = frozenset({"sliding_attention", "chunked_attention", "local_attention"})
_STATE_LAYERS = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv"})
# gemma3 configs leave the pattern out when it is the usual one.
_DEFAULT_SLIDING_PATTERN = {"gemma3": 6, "gemma3_text": 6}

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_HEAD_KEYS = ("num_attention_heads", "n_heads", "n_head", "num_heads")
_KV_HEAD_KEYS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "multi_query_group_num")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "model_dim")

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
    return _first_int(config, _CONTEXT_KEYS)


def quantization_of(config: Config) -> str | None:
    """Return words for the quantization: `4-bit group 32`, `4-bit group 32 mxfp4`, `fp8`; None for none."""
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "bits" in quantization:
        words = f"{quantization['bits']}-bit group {quantization.get('group_size', '?')}"
        mode = quantization.get("mode", "affine")
        return words if mode == "affine" else f"{words} {mode}"
    foreign = _field(config, "quantization_config")
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
    named = _field(config, "torch_dtype") or _field(config, "dtype")
    return _ITEMSIZES.get(str(named), 4)


def kv_shape(config: Config, itemsize: int) -> KvShape:
    """Return the estimated KV cost: 2 · kv_heads · head_dim · itemsize per token and attention layer.

    Latent attention (`kv_lora_rank`) keeps one latent and one rope key per token instead. Where the config lacks the
    numbers, nothing is estimated (no groups).
    """
    n_layers = _first_int(config, _LAYER_KEYS)
    if n_layers is None:
        return KvShape(())
    kinds = _layer_kinds(config, n_layers)
    window = _first_int(config, ("sliding_window", "attention_chunk_size", "attention_window_size"))
    grown: Counter[int | None] = Counter()
    for layer, kind in enumerate(kinds):
        if kind in _STATE_LAYERS:
            continue
        per_token = _bytes_per_token(config, layer, itemsize)
        if per_token is None:
            return KvShape(())
        grown[window if kind in _SLIDING_LAYERS else None] += per_token
    groups = tuple((per_token, cap) for cap, per_token in grown.items())
    n_state = sum(kind in _STATE_LAYERS for kind in kinds)
    return KvShape(groups, fixed_bytes=n_state * _state_bytes(config, itemsize))


def _layer_kinds(config: Config, n_layers: int) -> list[str]:
    """Return one word per layer, as `layer_types` has them."""
    named = _field(config, "layer_types")
    if isinstance(named, list) and len(named) == n_layers:
        return [str(kind) for kind in named]
    interval = _first_int(config, ("full_attention_interval",))
    if interval is not None:
        return ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(n_layers)]
    pattern = _first_int(config, ("sliding_window_pattern",))
    if pattern is None:
        pattern = _DEFAULT_SLIDING_PATTERN.get(str(config.get("model_type")))
    # A bare `sliding_window` is not enough: mlx-lm keeps the whole KV of such models (Mistral, Qwen2).
    if pattern is not None:
        return ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(n_layers)]
    return ["full_attention"] * n_layers


def _bytes_per_token(config: Config, layer: int, itemsize: int) -> int | None:
    latent = _first_int(config, ("kv_lora_rank",))
    if latent is not None:
        rope = _first_int(config, ("qk_rope_head_dim",))
        return (latent + (rope if rope is not None else 0)) * itemsize
    n_heads = _first_int(config, _HEAD_KEYS)
    head_dim = _first_int(config, ("head_dim",))
    if head_dim is None:
        width = _first_int(config, _WIDTH_KEYS)
        if width is None or n_heads is None:
            return None
        head_dim = width // n_heads
    n_kv_heads = _kv_heads(config, layer)
    if n_kv_heads is None:
        n_kv_heads = n_heads
    return None if n_kv_heads is None else 2 * n_kv_heads * head_dim * itemsize


def _kv_heads(config: Config, layer: int) -> int | None:
    per_layer = _field(config, "num_key_value_heads")
    if isinstance(per_layer, list):
        value = per_layer[layer] if layer < len(per_layer) else None
        return value if isinstance(value, int) else None
    return _first_int(config, _KV_HEAD_KEYS)


def _state_bytes(config: Config, itemsize: int) -> int:
    """Return the bytes of one gated-delta layer (Qwen3-Next's names): a float32 state and the convolution's tail."""
    key_heads, value_heads, key_dim, value_dim, kernel = (
        _first_int(config, (f"linear_{name}",))
        for name in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    )
    if key_heads is None or value_heads is None or key_dim is None or value_dim is None or kernel is None:
        return 0
    state = 4 * value_heads * key_dim * value_dim
    tail = itemsize * (kernel - 1) * (2 * key_heads * key_dim + value_heads * value_dim)
    return state + tail


def _field(config: Config, key: str) -> Any:
    """Return the value at the top or, in configs of several modalities, under `text_config`; None if absent."""
    if config.get(key) is not None:
        return config[key]
    text = config.get("text_config")
    return text.get(key) if isinstance(text, dict) else None


def _first_int(config: Config, keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = _field(config, key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
