"""What the catalog makes of configs."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd import model_config
from mlxd.engine.base import KvShape

LLAMA: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
PER_LAYER = 2 * 2 * 16 * 2


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(LLAMA, KvShape(((4 * PER_LAYER, None),)), id="grouped-query"),
        pytest.param(LLAMA | {"head_dim": 32}, KvShape(((8 * PER_LAYER, None),)), id="head-dim"),
        pytest.param(LLAMA | {"sliding_window": 100}, KvShape(((4 * PER_LAYER, None),)), id="bare-window"),
        pytest.param(
            LLAMA | {"sliding_window": 100, "layer_types": ["sliding_attention", "full_attention"] * 2},
            KvShape(((2 * PER_LAYER, 100), (2 * PER_LAYER, None))),
            id="layer-types",
        ),
        pytest.param(
            LLAMA | {"sliding_window": 100, "sliding_window_pattern": 4},
            KvShape(((3 * PER_LAYER, 100), (PER_LAYER, None))),
            id="pattern",
        ),
        pytest.param(
            {"model_type": "gemma3_text", "sliding_window": 9} | LLAMA | {"num_hidden_layers": 6},
            KvShape(((5 * PER_LAYER, 9), (PER_LAYER, None))),
            id="usual-pattern",
        ),
        pytest.param({"text_config": LLAMA}, KvShape(((4 * PER_LAYER, None),)), id="text-config"),
        pytest.param({"n_layer": 2, "n_embd": 32, "n_head": 4}, KvShape(((2 * 2 * 4 * 8 * 2, None),)), id="gpt2-names"),
        pytest.param(
            LLAMA | {"kv_lora_rank": 512, "qk_rope_head_dim": 64}, KvShape(((4 * 576 * 2, None),)), id="latent"
        ),
        pytest.param(
            LLAMA | {"num_key_value_heads": [1, 2, 3, 4]}, KvShape(((10 * 2 * 16 * 2, None),)), id="heads-per-layer"
        ),
        pytest.param({}, KvShape(()), id="empty"),
        pytest.param({"num_hidden_layers": 4}, KvShape(()), id="no-heads"),
    ],
)
def test_kv_shape(config: dict[str, Any], expected: KvShape) -> None:
    """The KV cost follows heads, windows and layer kinds at two bytes per activation."""
    assert expected == model_config.kv_shape(config, 2)


def test_kv_shape_of_state_layers() -> None:
    """Linear-attention layers cost a fixed state, whatever the length."""
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    }
    shape = model_config.kv_shape(LLAMA | linear | {"full_attention_interval": 4}, 2)
    assert shape.groups == ((PER_LAYER, None),)
    assert shape.fixed_bytes == 3 * (4 * 4 * 8 * 16 + 2 * 3 * (2 * 2 * 8 + 4 * 16))


@pytest.mark.parametrize(
    ("config", "dtypes", "expected"),
    [
        ({"torch_dtype": "bfloat16"}, [], 2),
        ({"dtype": "float16"}, ["U8"], 2),
        ({"torch_dtype": "bfloat16"}, ["F32", "BF16"], 4),
        ({"torch_dtype": "float32"}, ["BF16"], 2),
        ({"torch_dtype": "auto"}, [], 4),
        ({}, [], 4),
    ],
)
def test_activation_itemsize(config: dict[str, str], dtypes: list[str], expected: int) -> None:
    """The widest type of norms and scales counts, then the config, and four bytes when neither tells."""
    assert expected == model_config.activation_itemsize(config, dtypes)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"quantization": {"bits": 4, "group_size": 32}}, "4-bit group 32"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "4-bit group 32 mxfp4"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({}, None),
    ],
)
def test_quantization(config: dict[str, Any], expected: str | None) -> None:
    """Quantization reads as words."""
    assert expected == model_config.quantization_of(config)


def test_runnable_types_are_of_the_installed_package() -> None:
    """The types and their other names are those of the mlx-lm that is installed."""
    utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")
    assert utils.MODEL_REMAPPING == model_config.REMAPPED_TYPES
    assert {"llama", "qwen3", "gemma3", *utils.MODEL_REMAPPING.values()} <= model_config.runnable_types()
