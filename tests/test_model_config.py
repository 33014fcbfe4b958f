"""What the catalog makes of configs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd import model_config
from mlxd.engine.safetensors_header import Tensor


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


def sanitize(model_type: str, weight: Any, scale: Any) -> Any:
    """Return what mlx-lm makes of an fp8 weight and its scale."""
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    args = SimpleNamespace(num_hidden_layers=0, tie_word_embeddings=False)
    weights = {"a.weight": weight, "a.weight_scale_inv": scale}
    return module.Model.sanitize(SimpleNamespace(args=args), weights)["a.weight"]


def test_fp8_types_are_those_of_the_installed_package() -> None:
    """A type is known to turn fp8 into bfloat16 if its file does, or hands it on to one that does."""
    spec = importlib.util.find_spec("mlx_lm")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    texts = {path.stem: path.read_text() for path in Path(spec.submodule_search_locations[0], "models").glob("*.py")}
    converting = {name for name, text in texts.items() if "mx.from_fp8(weight" in text}
    handing_on = {name for name, text in texts.items() if re.search(r"\(DSV32Model\)|DeepseekV3LM\.sanitize", text)}
    assert converting | handing_on == model_config.FP8_TYPES
    scaling = {name for name, text in texts.items() if '"weight_scale_inv" in k' in text}
    assert scaling - converting == model_config.MISREAD_FP8_TYPES


@pytest.mark.parametrize(
    "model_type", ["deepseek_v3", "deepseek_v32", "glm_moe_dsa", "mimo_v2_flash", "minimax", "mistral4"]
)
def test_fp8_takes_twice_its_size_in_memory(model_type: str) -> None:
    """The estimate is what mlx-lm makes of the tensors; another type's are what they are."""
    import mlx.core as mx

    loaded = sanitize(model_type, mx.zeros((128, 128), mx.uint8), mx.ones((1, 1)))
    tensors = [
        Tensor("a.weight", "F8_E4M3", (128, 128), 128 * 128, 0),
        Tensor("a.weight_scale_inv", "F32", (1, 1), 4, 0),
        Tensor("b.weight", "BF16", (10,), 20, 0),
    ]
    assert model_config.loaded_bytes({"model_type": model_type}, tensors) == loaded.nbytes + 4 + 20
    nested = {"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}
    assert model_config.loaded_bytes(nested, tensors) == loaded.nbytes + 4 + 20
    assert model_config.loaded_bytes({"model_type": "llama"}, tensors) == 128 * 128 + 4 + 20


def test_fp8_that_mlx_lm_misreads_is_a_problem() -> None:
    """Ministral's scales are multiplied with the codes of the numbers, which makes noise without an error."""
    import mlx.core as mx

    one = mx.to_fp8(mx.array([1.0]))
    assert sanitize("ministral3", one, mx.array([1.0])).item() == 56  # the code of 1.0
    tensors = [Tensor("a.weight", "F8_E4M3", (1,), 1, 0), Tensor("a.weight_scale_inv", "F32", (1,), 4, 0)]
    config = {"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}
    problem = model_config.fp8_problem(config, tensors)
    assert problem == "mlx-lm cannot read fp8 weights of the type ministral3; convert the bfloat16 model instead"
    assert model_config.fp8_problem(config, tensors[:1]) is None
    assert model_config.fp8_problem({"model_type": "mistral4"}, tensors) is None


def test_runnable_types_are_of_the_installed_package() -> None:
    """The types and their other names are those of the mlx-lm that is installed; files that make no models are none."""
    utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed")
    runnable = model_config.find_runnable().text
    assert {"llama", "qwen3", "gemma3", *utils.MODEL_REMAPPING.values()} <= runnable
    assert not {"__init__", "base", "cache", "switch_layers", "ssm"} & runnable
    for named, module in utils.MODEL_REMAPPING.items():
        assert model_config.module_of({"model_type": named}) == module
    for (named, architecture), module in utils.MODEL_ARCHITECTURE_REMAPPING.items():
        assert model_config.module_of({"model_type": named, "architectures": [architecture]}) == module
    assert model_config.module_of({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}) == "llama"


def test_known_tokenizers_are_those_of_the_installed_package() -> None:
    """The table that is read is the one that transformers makes."""
    auto = importlib.import_module("transformers.models.auto.tokenization_auto")
    known = model_config.known_tokenizers()
    for model_type, name in auto.TOKENIZER_MAPPING_NAMES.items():
        assert model_type in known
        assert name is None or name.removesuffix("Fast") in known
    assert not {"TikTokenTokenizer", "InternLM2Tokenizer", "QWenTokenizer", "kimi_k2", "qwen"} & known
