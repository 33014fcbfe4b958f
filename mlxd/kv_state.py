"""What one state-space or convolution layer keeps of a sequence, whatever its length, by a model's `config.json`.

A state and the tail of a convolution, as mlx-lm's model files keep them in an `ArraysCache`. Must not import mlx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxd.engine.config import Config, as_size, field_of, first_int

# States have four bytes a number, whatever the activations are.
_STATE_ITEMSIZE = 4


class UnknownKv(Exception):
    """The config does not tell what a sequence keeps."""


def need(config: Config, *keys: str) -> int:
    """Return the first whole number that one of the keys has, or raise `UnknownKv`."""
    value = first_int(config, keys)
    if value is None:
        raise UnknownKv
    return value


def state_bytes(config: Config, model_type: str, itemsize: int) -> int:
    """Return the bytes of one layer; *itemsize* is that of the activations.

    Raises:
        UnknownKv: the config, or the model type, is not understood.
    """
    if model_type not in _STATES:
        raise UnknownKv
    return _STATES[model_type](config, itemsize)


def _gated_delta(config: Config, itemsize: int) -> int:
    """Qwen3-Next and OLMo hybrid."""
    key_width = need(config, "linear_num_key_heads") * need(config, "linear_key_head_dim")
    value_heads, value_dim = need(config, "linear_num_value_heads"), need(config, "linear_value_head_dim")
    tail = (need(config, "linear_conv_kernel_dim") - 1) * (2 * key_width + value_heads * value_dim)
    return _STATE_ITEMSIZE * value_heads * need(config, "linear_key_head_dim") * value_dim + itemsize * tail


def _kimi_delta(config: Config, itemsize: int) -> int:
    linear = kimi_attention(config)
    heads, head_dim = as_size(linear.get("num_heads")), as_size(linear.get("head_dim"))
    kernel = as_size(linear.get("short_conv_kernel_size", 4))
    if heads is None or head_dim is None or kernel is None:
        raise UnknownKv
    return _STATE_ITEMSIZE * heads * head_dim**2 + itemsize * 3 * (kernel - 1) * heads * head_dim


def kimi_attention(config: Config) -> Mapping[str, Any]:
    """Return Kimi Linear's own table."""
    linear = field_of(config, "linear_attn_config")
    if not isinstance(linear, dict):
        raise UnknownKv
    return linear


def _mamba1(inner: int, state: int, kernel: int, itemsize: int) -> int:
    return _STATE_ITEMSIZE * inner * state + itemsize * (kernel - 1) * inner


def _mamba(config: Config, itemsize: int) -> int:
    inner, state = need(config, "intermediate_size", "d_inner"), need(config, "state_size", "d_state")
    return _mamba1(inner, state, need(config, "conv_kernel", "d_conv"), itemsize)


def _jamba(config: Config, itemsize: int) -> int:
    inner = need(config, "mamba_expand") * need(config, "hidden_size")
    return _mamba1(inner, need(config, "mamba_d_state"), need(config, "mamba_d_conv"), itemsize)


def _mamba2(config: Config, itemsize: int) -> int:
    """Mamba 2 and its relatives under their several names."""
    heads = need(config, "mamba_num_heads", "mamba_n_heads", "num_heads")
    head_dim = need(config, "mamba_head_dim", "mamba_d_head", "head_dim")
    state = need(config, "ssm_state_size", "mamba_d_state", "state_size")
    groups = need(config, "mamba_n_groups", "n_groups")
    kernel = need(config, "mamba_d_conv", "conv_kernel")
    channels = heads * head_dim + 2 * groups * state
    return _STATE_ITEMSIZE * heads * head_dim * state + itemsize * (kernel - 1) * channels


def _short_convolution(config: Config, itemsize: int) -> int:
    """LFM2."""
    return itemsize * (need(config, "conv_L_cache") - 1) * need(config, "hidden_size")


def _griffin(config: Config, itemsize: int) -> int:
    """Recurrent Gemma."""
    width = need(config, "hidden_size")
    return _STATE_ITEMSIZE * width + itemsize * (need(config, "conv1d_width") - 1) * width


_STATES: Mapping[str, Callable[[Config, int], int]] = {
    "falcon_h1": _mamba2,
    "granitemoehybrid": _mamba2,
    "jamba": _jamba,
    "kimi_linear": _kimi_delta,
    "lfm2": _short_convolution,
    "lfm2_moe": _short_convolution,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "nemotron_h": _mamba2,
    "olmo_hybrid": _gated_delta,
    "qwen3_5": _gated_delta,
    "qwen3_5_moe": _gated_delta,
    "qwen3_next": _gated_delta,
    "recurrent_gemma": _griffin,
}
STATE_TYPES = frozenset(_STATES)
