"""What configs say of the KV; `engine/test_kv.py` compares it with real caches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.engine.kv_shape import KvShape
from mlxd.kv_estimate import EXPANDED_TYPES, LATENT_TYPES, STRANGE_TYPES, WINDOWED_TYPES, Confidence, estimate_kv
from mlxd.kv_state import STATE_TYPES

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PER_LAYER = 2 * 2 * 16 * 2
FULL_HEADS = KvShape(((2 * 4 * 64 * 2, None),))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(LLAMA, KvShape(((4 * PER_LAYER, None),)), id="grouped-query"),
        pytest.param(LLAMA | {"head_dim": 32}, KvShape(((8 * PER_LAYER, None),)), id="head-dim"),
        pytest.param(
            LLAMA | {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 4, "sliding_window": 100},
            KvShape(((4 * PER_LAYER, None),)),
            id="window-that-mlx-lm-does-not-use",
        ),
        pytest.param(
            LLAMA | {"model_type": "mistral", "sliding_window": 100},
            KvShape(((4 * PER_LAYER, None),)),
            id="bare-window",
        ),
        pytest.param(
            LLAMA | {"sliding_window": 100, "layer_types": ["sliding_attention", "full_attention"] * 2},
            KvShape(((2 * PER_LAYER, 100), (2 * PER_LAYER, None))),
            id="layer-types",
        ),
        pytest.param(
            LLAMA | {"model_type": "cohere2", "sliding_window": 100, "sliding_window_pattern": 4},
            KvShape(((3 * PER_LAYER, 100), (PER_LAYER, None))),
            id="pattern",
        ),
        pytest.param(
            LLAMA | {"model_type": "gemma3_text", "sliding_window": 9, "num_hidden_layers": 6},
            KvShape(((5 * PER_LAYER, 9), (PER_LAYER, None))),
            id="usual-pattern",
        ),
        pytest.param(
            {"model_type": "gemma3", "text_config": LLAMA | {"sliding_window": 9}},
            KvShape(((4 * PER_LAYER, 9),)),
            id="text-config",
        ),
        pytest.param(
            {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 4},
            KvShape(((2 * 2 * 4 * 8 * 2, None),)),
            id="gpt2-names",
        ),
        pytest.param(
            LLAMA | {"model_type": "kimi_k2", "kv_lora_rank": 512, "qk_rope_head_dim": 64},
            KvShape(((4 * 576 * 2, None),)),
            id="latent",
        ),
        pytest.param(
            LLAMA
            | {
                "model_type": "deepseek_v2",
                "kv_lora_rank": 512,
                "qk_rope_head_dim": 64,
                "qk_nope_head_dim": 128,
                "v_head_dim": 100,
            },
            KvShape(((4 * 4 * (192 + 100) * 2, None),)),
            id="latent-expanded",
        ),
        pytest.param(
            LLAMA | {"num_key_value_heads": [1, 2, 3, 4]}, KvShape(((10 * 2 * 16 * 2, None),)), id="heads-per-layer"
        ),
    ],
)
def test_what_is_understood(config: dict[str, Any], expected: KvShape) -> None:
    """The KV cost follows heads, windows and layer kinds at two bytes per activation."""
    estimate = estimate_kv(config, 2, 10**6)
    assert (expected, Confidence.HEADER) == (estimate.shape, estimate.confidence)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(
            LLAMA | {"num_hidden_layers": 10**9}, KvShape(((2 * 10**9 * 64 * 2, None),)), id="too-many-layers"
        ),
        pytest.param({}, KvShape(((1024, None),)), id="empty"),
        pytest.param({"num_hidden_layers": 4}, KvShape(((1024, None),)), id="no-width"),
        pytest.param(LLAMA | {"model_type": "gemma4_text"}, FULL_HEADS, id="strange-type"),
        pytest.param(LLAMA | {"kv_lora_rank": 512}, FULL_HEADS, id="a-latent-of-its-own"),
        pytest.param(LLAMA | {"layer_types": ["new_attention"] * 4}, FULL_HEADS, id="unknown-layers"),
        pytest.param(LLAMA | {"layer_types": ["full_attention"]}, FULL_HEADS, id="too-few-layers"),
        pytest.param(LLAMA | {"model_type": "qwen3_next"}, FULL_HEADS, id="no-state-size"),
        pytest.param(
            LLAMA | {"num_key_value_heads": [1, "x"], "v_head_dim": 32},
            KvShape(((2 * 4 * 4 * 32 * 2, None),)),
            id="bad-heads",
        ),
        pytest.param(
            {"model_type": "qwen2", "num_hidden_layers": 2, "hidden_size": 4, "num_attention_heads": 8},
            KvShape(((2 * 2 * 4 * 2, None),)),
            id="more-heads-than-width",
        ),
    ],
)
def test_what_is_not_understood_is_guessed_on_the_safe_side(config: dict[str, Any], expected: KvShape) -> None:
    """A guess is full multi-head attention in every layer, or a share of the weights, and says that it is one."""
    estimate = estimate_kv(config, 2, 10**6)
    assert (expected, Confidence.GUESS) == (estimate.shape, estimate.confidence)


_NUMBERS = st.one_of(st.none(), st.integers(-3, 300), st.booleans(), st.text(max_size=3), st.lists(st.integers(0, 9)))
_KEYS = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window"),
    *("sliding_window_pattern", "kv_lora_rank", "qk_rope_head_dim", "full_attention_interval", "layer_types"),
    *("hybrid_override_pattern", "block_types", "linear_attn_config", "full_attn_idxs", "attn_layer_period"),
)
_TYPES = sorted(WINDOWED_TYPES | STATE_TYPES | LATENT_TYPES | EXPANDED_TYPES | {"qwen2"})


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(_TYPES), st.dictionaries(st.sampled_from(_KEYS), _NUMBERS))
def test_no_config_breaks_it(model_type: str, config: dict[str, Any]) -> None:
    """Whatever stands in a config, the answer is an estimate of some bytes."""
    estimate = estimate_kv({"model_type": model_type} | config, 2, 10**6)
    assert estimate.shape.bytes_for(1000) > 0


def test_every_model_file_is_accounted_for() -> None:
    """Each file of the installed mlx-lm that makes caches of its own, or keeps latents, is in one of the tables."""
    models = pytest.importorskip("mlx_lm.models", reason="mlx-lm is not installed")
    known = WINDOWED_TYPES | STATE_TYPES | LATENT_TYPES | EXPANDED_TYPES | STRANGE_TYPES
    plain = {"afm7"}  # one KVCache for each layer, written out
    special = {
        file.stem
        for file in Path(models.__path__[0]).glob("*.py")
        if re.search(r"def make_cache|kv_lora_rank", file.read_text(encoding="utf-8")) and file.stem != "cache"
    }
    assert special - known - plain == set()
