"""What the catalog makes of configs."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd import model_config


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
    assert {"llama", "qwen3", "gemma3", *utils.MODEL_REMAPPING.values()} <= model_config.find_runnable().text
