"""What a model's `config.json` says of the KV of one sequence, before the model is loaded.

Follows what mlx-lm's model files keep (their `make_cache` and their attention), not what a paper says: Mistral's bare
`sliding_window` is not used there, and DeepSeek V2 expands its latents. Where a config or a model type is not
understood, the answer is a guess on the safe side and says so. Must not import mlx or mlx_lm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from mlxd.engine.config import LAYER_KEYS, Config, as_size, field_of, first_int
from mlxd.engine.kv_shape import KvShape
from mlxd.kv_state import UnknownKv, kimi_attention, need, state_bytes
from mlxd.model_config import REMAPPED_TYPES


class Confidence(Enum):
    """Where a number comes from, the best first."""

    MEASURED = "measured"  # at a load of these very files
    HEADER = "header"  # computed from the files' headers and a config that is understood
    GUESS = "guess"  # the config leaves it open: a number on the safe side


@dataclass(frozen=True, slots=True)
class KvEstimate:
    """The KV of one sequence, and how sure that is."""

    shape: KvShape
    confidence: Confidence


# Model types whose sliding layers have a window in mlx-lm; it keeps all of the KV of every other one.
WINDOWED_TYPES = frozenset(
    {
        *("afmoe", "cohere2", "exaone4", "exaone_moe", "gemma3", "gemma3_text", "gpt_oss", "laguna", "llama", "mellum"),
        *("ministral3", "mistral3", "muse_glimmer", "olmo3", "recurrent_gemma", "spark2_5", "step3p5"),
    }
)
# Every n-th layer is full, the others slide, where the config does not say.
_USUAL_PATTERN = {"cohere2": 4, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "muse_glimmer": 4, "olmo3": 4}
# Latent attention keeps one latent and one rope key per token ...
LATENT_TYPES = frozenset({"deepseek_v3", "glm4_moe_lite", "kimi_linear", "kimi_vl", "mistral4"})
# ... but where the latent is expanded before it is kept, the keys and values of every head.
EXPANDED_TYPES = frozenset({"deepseek_v2", "minicpm3", "youtu_llm"})
# Types whose caches are of their own making and not followed here.
STRANGE_TYPES = frozenset(
    {
        *("baichuan_m1", "bailing_hybrid", "bailing_moe_linear", "bailing_moe_v3", "deepseek_v32", "deepseek_v41"),
        *("gear", "gemma3n", "gemma4", "gemma4_text", "glm_moe_dsa", "iquestloopcoder", "kimi_k3", "lfm2-vl", "llama4"),
        *("longcat_flash", "longcat_flash_ngram", "mimo_v2_flash", "minimax_m3_vl", "muse_spark", "nanbeige"),
        *("nemotron-nas", "plamo2", "plamo3", "rwkv7", "kimi_k25", "llama4_text"),
    }
)

# Every layer has both a state and attention.
_STATE_BESIDE_ATTENTION = frozenset({"falcon_h1"})

_HEAD_KEYS = ("num_attention_heads", "n_heads", "n_head", "num_heads")
_KV_HEAD_KEYS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "multi_query_group_num")
_HEAD_DIM_KEYS = ("head_dim", "global_head_dim", "v_head_dim", "hidden_size_per_head")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model", "model_dim")
_WINDOW_KEYS = ("sliding_window", "attention_window_size")

_FULL, _SLIDING, _STATE, _NONE = "full", "sliding", "state", "none"
_LAYER_WORDS = {
    **dict.fromkeys(("full_attention", "attention", "*"), _FULL),
    **dict.fromkeys(("sliding_attention", "local_attention", "L"), _SLIDING),
    "G": _FULL,
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "recurrent", "conv", "M"), _STATE),
    **dict.fromkeys(("moe", "mlp", "E", "-"), _NONE),
}
# With nothing to go by: 4-bit models of full multi-head attention, the costliest, take a 7000th of the weights a token.
_WEIGHTS_PER_TOKEN = 7000
_LEAST_BYTES_PER_TOKEN = 1024
# What claims more is no config.
_MOST_LAYERS = 10_000


def estimate_kv(config: Config, itemsize: int, weights_bytes: int) -> KvEstimate:
    """Return the KV of one sequence by the config; a guess never costs less than full multi-head attention.

    Args:
        config: the model's `config.json`.
        itemsize: bytes of one activation, which is what the KV is stored as.
        weights_bytes: for a guess where the config has no numbers at all.
    """
    named = config.get("model_type")
    model_type = REMAPPED_TYPES.get(named, named) if isinstance(named, str) else ""
    if model_type not in STRANGE_TYPES:
        with suppress(UnknownKv):
            shape = _shape(config, model_type, itemsize)
            if shape.bytes_for(1):  # nothing costs nothing: more heads than width, say
                return KvEstimate(shape, Confidence.HEADER)
    return KvEstimate(_guess(config, itemsize, weights_bytes), Confidence.GUESS)


def _shape(config: Config, model_type: str, itemsize: int) -> KvShape:
    """Return the sum over the layers: 2 · kv_heads · head_dim · itemsize per token for common attention."""
    kinds = _layer_kinds(config, model_type)
    grown: Counter[int | None] = Counter()
    for layer, kind in enumerate(kinds):
        if kind == _FULL or (kind == _SLIDING and model_type not in WINDOWED_TYPES):
            grown[None] += _bytes_per_token(config, model_type, layer, itemsize)
        elif kind == _SLIDING:
            grown[need(config, *_WINDOW_KEYS)] += _bytes_per_token(config, model_type, layer, itemsize)
    n_state = len(kinds) if model_type in _STATE_BESIDE_ATTENTION else kinds.count(_STATE)
    fixed_bytes = n_state * state_bytes(config, model_type, itemsize) if n_state else 0
    return KvShape(tuple((per_token, cap) for cap, per_token in grown.items()), fixed_bytes)


def _guess(config: Config, itemsize: int, weights_bytes: int) -> KvShape:
    """Return full multi-head attention in every layer, or without numbers a share of the weights."""
    n_layers, width = first_int(config, LAYER_KEYS), first_int(config, _WIDTH_KEYS)
    if n_layers is None or width is None:
        return KvShape(((max(weights_bytes // _WEIGHTS_PER_TOKEN, _LEAST_BYTES_PER_TOKEN), None),))
    n_heads = first_int(config, _HEAD_KEYS)
    head_dims = [
        first_int(config, (key,)) for key in ("head_dim", "global_head_dim", "v_head_dim", "hidden_size_per_head")
    ]
    widest = max((dim for dim in head_dims if dim is not None), default=0)
    keys_width = max(width, widest * n_heads if n_heads is not None else 0)
    return KvShape(((2 * n_layers * keys_width * itemsize, None),))


# Layers


def _layer_kinds(config: Config, model_type: str) -> list[str]:
    words = _layer_words(config, model_type)
    if not all(word in _LAYER_WORDS for word in words):
        raise UnknownKv
    return [_LAYER_WORDS[word] for word in words]


def _layer_words(config: Config, model_type: str) -> Sequence[str]:
    """Return one word per layer, wherever the config has them."""
    if model_type in {"nemotron_h", "granitemoehybrid", "lfm2", "lfm2_moe"}:
        for key in ("hybrid_override_pattern", "layers_block_type", "layer_types"):
            if field_of(config, key) is not None:
                return _words(config, key)
        if model_type == "nemotron_h":
            raise UnknownKv
    n_layers = need(config, *LAYER_KEYS)
    if n_layers > _MOST_LAYERS:
        raise UnknownKv
    if model_type in {"mamba", "mamba2"}:
        return ["mamba"] * n_layers
    if model_type in _LISTED:
        found = _LISTED[model_type](config, n_layers)
    elif model_type in WINDOWED_TYPES:
        found = _windowed(config, model_type, n_layers)
    else:
        found = ["full_attention"] * n_layers
    if len(found) != n_layers:
        raise UnknownKv
    return found


def _windowed(config: Config, model_type: str, n_layers: int) -> list[str]:
    if isinstance(field_of(config, "layer_types"), list):
        return _words(config, "layer_types")
    pattern = field_of(config, "sliding_window_pattern")
    if isinstance(pattern, str) and pattern:  # EXAONE: "LLLG"
        return [pattern[layer % len(pattern)] for layer in range(n_layers)]
    every = first_int(config, ("sliding_window_pattern",))
    if every is None:
        every = _USUAL_PATTERN.get(model_type, 1)
    return ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(n_layers)]


def _every_interval(config: Config, n_layers: int) -> list[str]:
    """Return Qwen3-Next's layers."""
    every = first_int(config, ("full_attention_interval",))
    every = 4 if every is None else every
    return ["full_attention" if (layer + 1) % every == 0 else "linear_attention" for layer in range(n_layers)]


def _jamba_layers(config: Config, n_layers: int) -> list[str]:
    if field_of(config, "layers_block_type") is not None:
        return _words(config, "layers_block_type")
    period, offset = need(config, "attn_layer_period"), field_of(config, "attn_layer_offset")
    return ["attention" if layer % period == offset else "mamba" for layer in range(n_layers)]


def _lfm2_layers(config: Config, n_layers: int) -> list[str]:
    full = _indices(field_of(config, "full_attn_idxs"))
    return ["full_attention" if layer in full else "conv" for layer in range(n_layers)]


def _recurrent_gemma_layers(config: Config, n_layers: int) -> list[str]:
    blocks = _words(config, "block_types" if field_of(config, "block_types") is not None else "_block_types")
    words = {"recurrent": "recurrent", "attention": "sliding_attention"}
    return [words.get(blocks[layer % len(blocks)], "?") for layer in range(n_layers)]


def _kimi_layers(config: Config, n_layers: int) -> list[str]:
    linear = _indices(kimi_attention(config).get("kda_layers"))
    return ["linear_attention" if layer + 1 in linear else "full_attention" for layer in range(n_layers)]


def _named_layers(config: Config, n_layers: int) -> list[str]:  # noqa: ARG001 as the others
    return _words(config, "layer_types")


def _words(config: Config, key: str) -> list[str]:
    """Return a list of words, or the letters of one word."""
    named = field_of(config, key)
    if not isinstance(named, (list, str)) or not 0 < len(named) <= _MOST_LAYERS:
        raise UnknownKv
    if not all(isinstance(word, str) for word in named):
        raise UnknownKv
    return list(named)


def _indices(named: object) -> frozenset[int]:
    """Return the layers of a list."""
    if not isinstance(named, list) or not all(isinstance(layer, int) for layer in named):
        raise UnknownKv
    return frozenset(named)


_LISTED: Mapping[str, Callable[[Config, int], list[str]]] = {
    "jamba": _jamba_layers,
    "kimi_linear": _kimi_layers,
    "lfm2": _lfm2_layers,
    "lfm2_moe": _lfm2_layers,
    "olmo_hybrid": _named_layers,
    "qwen3_5": _every_interval,
    "qwen3_5_moe": _every_interval,
    "qwen3_next": _every_interval,
    "recurrent_gemma": _recurrent_gemma_layers,
}


# Attention


def _bytes_per_token(config: Config, model_type: str, layer: int, itemsize: int) -> int:
    if model_type in EXPANDED_TYPES:
        keys = need(config, "qk_nope_head_dim") + need(config, "qk_rope_head_dim")
        return need(config, *_HEAD_KEYS) * (keys + _value_dim(config)) * itemsize
    if model_type in LATENT_TYPES:
        return (need(config, "kv_lora_rank") + need(config, "qk_rope_head_dim")) * itemsize
    if first_int(config, ("kv_lora_rank",)) is not None:
        raise UnknownKv  # a latent that mlx-lm keeps in a way of its own
    n_heads = need(config, *_HEAD_KEYS)
    head_dim = first_int(config, ("head_dim",))
    if head_dim is None:
        head_dim = need(config, *_WIDTH_KEYS) // n_heads
    return 2 * _kv_heads(config, layer, n_heads) * head_dim * itemsize


def _value_dim(config: Config) -> int:
    value_dim = first_int(config, ("v_head_dim",))
    return need(config, *_WIDTH_KEYS) // need(config, *_HEAD_KEYS) if value_dim is None else value_dim


def _kv_heads(config: Config, layer: int, n_heads: int) -> int:
    per_layer = field_of(config, "num_key_value_heads")
    if isinstance(per_layer, list):
        value = as_size(per_layer[layer]) if layer < len(per_layer) else None
        if value is None:
            raise UnknownKv
        return value
    n_kv_heads = first_int(config, _KV_HEAD_KEYS)
    return n_heads if n_kv_heads is None else n_kv_heads
