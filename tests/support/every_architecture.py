"""Tiny configs of every model module of mlx-lm that one can be made up for; weights are random, nothing is on disk.

One map of keys serves them all, as each module takes the keys that it knows; `_SPECIAL` has what is of one module only.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, cast

import mlx.core as mx
from mlx.nn.layers.quantized import quantize
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear

# What weights and activations are stored as; the activations of 4 bits are bfloat16.
PRECISIONS = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16, "4 bits": mx.bfloat16}

_LAYERS = 4
_HALF_WINDOWED = ["sliding_attention", "full_attention"] * 2
_ROPE: dict[str, Any] = {"rope_theta": 10000.0, "rope_type": "default"}
_ROPE_BY_KIND: dict[str, Any] = {"rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _ROPE)}
_YARN: dict[str, Any] = {
    "type": "yarn",
    "factor": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
_LLAMA_4_ROPE: dict[str, Any] = _ROPE | {
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 4096,
    "type": "default",
}

_COMMON: dict[str, Any] = {
    # sizes
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "hidden_dim", "model_dim", "dim_model_base"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"), _LAYERS),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_hidden_size", "ff_intermediate_size"), 96),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads", "num_attention_groups"), 2),
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), 110),
    **dict.fromkeys(("max_position_embeddings", "model_max_length", "n_positions", "n_ctx", "block_size"), 4096),
    "head_dim": 32,
    "rotary_dim": 8,
    # numbers
    **dict.fromkeys(
        ("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon"),
        1e-5,
    ),
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "query_pre_attn_scalar": 32,
    **dict.fromkeys(("embedding_multiplier", "logits_scaling", "residual_multiplier", "scale_depth", "scale_emb"), 1.0),
    "attention_multiplier": 0.2,
    "hidden_act": "silu",
    # switches
    **dict.fromkeys(
        (
            *("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias", "conv_bias", "mamba_proj_bias"),
            *("tie_word_embeddings", "post_norm"),
        ),
        False,
    ),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "use_conv_bias", "mamba_conv_bias"), True),
    # windows
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size"), 64),
    "sliding_window_pattern": 2,
    # experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k"), 2),
    **dict.fromkeys(
        (
            *("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
            *("shared_intermediate_size", "expert_ffn_hidden_size", "share_expert_dim"),
        ),
        32,
    ),
    **dict.fromkeys(
        (
            *("n_shared_experts", "num_shared_experts", "num_shared_expert", "decoder_sparse_step", "moe_layer_freq"),
            *("first_k_dense_replace", "n_group", "topk_group", "num_expert_group", "num_dense_layers"),
        ),
        1,
    ),
    "zero_expert_num": 2,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "use_expert_bias": True,
    # latent attention
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "qk_head_dim": 24,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,
    "attention_method": "MLA",
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    # states
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "layer_group_size": 2,
    "group_norm_size": 1,
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads", "mamba_d_conv", "conv_kernel"), 4),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head"), 32),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 16),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 1),
    "mamba_d_ssm": 128,
    "mamba_expand": 2,
    "time_step_rank": 8,
    "time_step_limit": [0.0, 100.0],
    "conv_L_cache": 3,
}


def _with_text(model_type: str, /, **changes: Any) -> dict[str, Any]:
    return {"text_config": _COMMON | {"model_type": model_type} | _SPECIAL.get(model_type, {}) | changes}


_LINEAR_ATTENTION: dict[str, Any] = {
    "linear_attn_config": {
        "num_heads": 2,
        "head_dim": 32,
        "short_conv_kernel_size": 4,
        "kda_layers": [1, 2, 3],
        "full_attn_layers": [4],
        "gate_lower_bound": -5.0,
    }
}
_LFM2: dict[str, Any] = {
    "layer_types": ["conv", "full_attention"] * 2,
    "block_dim": 64,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
}
_LLAMA4: dict[str, Any] = {
    "attention_chunk_size": 64,
    "head_dim": 16,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 64,
    "num_experts_per_tok": 1,
    "num_local_experts": 2,
    "no_rope_layers": [1, 1, 1, 0],
}

_SPECIAL: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 1},
    "afmoe": {"layer_types": _HALF_WINDOWED},
    "baichuan_m1": {"sliding_window_layers": [1, 3], "conv_window": 2, "head_dim": 16},
    "bailing_moe": {"n_group": 2},
    "bailing_moe_linear": {"n_group": 2},
    "cohere2": {"head_dim": 16},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": _YARN},
    "deepseek_v41": {"head_dim": 32, "o_groups": 2, "o_lora_rank": 16, "index_head_dim": 32},
    "exaone": {"head_dim": 16},
    "exaone4": {"head_dim": 16, "sliding_window_pattern": "LLLG"},
    "exaone_moe": {"layer_types": _HALF_WINDOWED, "is_moe_layer": [False, True, True, True]},
    "gear": {"layer_types": ["conv_mixer", "sliding_attention", "conv_mixer", "full_attention"]},
    "gemma4_text": {
        "layer_types": _HALF_WINDOWED,
        "num_kv_shared_layers": 0,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 16,
    },
    "gemma3n_text": {
        "layer_types": _HALF_WINDOWED,
        "num_kv_shared_layers": 2,
        "rope_local_base_freq": 10000.0,
        "final_logit_softcapping": 30.0,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 16,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 8,
        "intermediate_size": [96] * _LAYERS,
    },
    "glm_moe_dsa": {"rope_parameters": _ROPE},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.25, "num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan": {
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
    "kimi_k3": _LINEAR_ATTENTION | {"hidden_act": "situ", "activation_situ_beta": 1.0},
    "kimi_linear": _LINEAR_ATTENTION | {"head_dim": 16},
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "llama": {"layer_types": _HALF_WINDOWED},
    "llama4_text": _LLAMA4,
    "longcat_flash": {"zero_expert_type": "identity"},
    "mamba2": {"num_heads": 4},
    "mellum": {"layer_types": _HALF_WINDOWED} | _ROPE_BY_KIND,
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 32,
        "swa_v_head_dim": 16,
    },
    "minicpm3": {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0] * 4}},
    "minimax_m3_vl_text": {"dense_intermediate_size": 96},
    "ministral3": {"layer_types": _HALF_WINDOWED, "rope_parameters": _LLAMA_4_ROPE},
    "mistral4": {"rope_parameters": _LLAMA_4_ROPE},
    "nanbeige": {"num_loops": 2},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {
                "attention": {"no_op": False, "n_heads_in_group": 2},
                "ffn": {"no_op": False, "ffn_mult": 1.5},
            }
        ]
        * _LAYERS
    },
    "nemotron_h": {"hybrid_override_pattern": list("M*M-")},
    "olmo_hybrid": {"linear_allow_neg_eigval": True},
    "openelm": {
        "ffn_dim_divisor": 8,
        "num_query_heads": [4] * _LAYERS,
        "num_kv_heads": [2] * _LAYERS,
        "ffn_multipliers": [1.0] * _LAYERS,
    },
    "phi3small": {
        "dense_attention_every_n_layers": 2,
        "gegelu_limit": 20.0,
        "blocksparse_block_size": 32,
    },
    "phimoe": {
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 8,
            "long_factor": [1.0] * 8,
            "short_mscale": 1.0,
            "long_mscale": 1.0,
        }
    },
    "plamo": {"n_shared_head": 2},
    "plamo2": {"hidden_size_per_head": 16},
    "qwen": {"kv_channels": 16, "intermediate_size": 128},
    "recurrent_gemma": {
        "block_types": ["recurrent", "recurrent", "attention"],
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "num_key_value_heads": 1,
    },
    "rwkv7": dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"), 16),
    "spark2_5": {"hidden_act": "gelu", "layer_types": _HALF_WINDOWED} | _ROPE_BY_KIND,
    "step3p5": {
        "layer_types": _HALF_WINDOWED,
        "moe_layers_enum": "1,2,3",
        "attention_other_setting": {"num_attention_heads": 4, "num_attention_groups": 2},
    },
}
_SPECIAL |= {
    "gemma3": _with_text("gemma3_text") | {"vocab_size": 110},
    "gemma3n": _with_text("gemma3n_text"),
    "gemma4": _with_text("gemma4_text") | {"vocab_size": 110},
    "kimi_k25": _with_text("deepseek_v3"),
    "kimi_k3": _with_text("kimi_k3"),
    "kimi_vl": _with_text("deepseek_v3"),
    "lfm2-vl": _with_text("lfm2"),
    "llama4": _with_text("llama4_text"),
    "minimax_m3_vl": _with_text("minimax_m3_vl_text", moe_layer_freq=[0, 1, 1, 1]),
    "mistral3": _with_text("llama"),
    "pixtral": _with_text("llama"),
    "qwen2_vl": _with_text("qwen2"),
    "qwen3_5": _with_text("qwen3_5", rope_parameters=_ROPE | {"partial_rotary_factor": 0.5}),
    "qwen3_5_moe": _with_text("qwen3_5_moe", rope_parameters=_ROPE | {"partial_rotary_factor": 0.5}),
    "qwen3_vl": _with_text("qwen3"),
    "qwen3_vl_moe": _with_text("qwen3_moe"),
}
# Modules of mlx-lm's `models` that are no models.
_PARTS = {
    *("activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline", "rope_utils", "ssm"),
    "switch_layers",
}
# Models that no config can be made up for, and why.
UNBUILT: Mapping[str, str] = {
    "bitnet": "its kernels are Metal's only",
    "muse_spark": "its kernels are Metal's only",
    "phi3small": "it reads beyond its arrays on a CPU: numbers that change from run to run, and a damaged heap",
    "olmo": "it imports a package that is not installed",
    "prism_hadamard_qwen35": "its weights are packed, and the config lists them",
}


def every_type() -> list[str]:
    """Return the model types that a config can be made up for."""
    import mlx_lm.models

    found = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    return sorted(found - _PARTS - set(UNBUILT))


def config_of(model_type: str) -> dict[str, Any]:
    """Return a tiny config."""
    return _COMMON | {"model_type": model_type} | _SPECIAL.get(model_type, {})


def make_model(config: Mapping[str, Any]) -> Any:
    """Return the `mlx.nn.Module` of a config; its random weights are made when they are first used."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    return module.Model(module.ModelArgs.from_dict(dict(config)))


def make_any(model_type: str, precision: str = "float32") -> Any:
    """Return the `mlx.nn.Module` of a type, evaluated, with its random weights in one of `PRECISIONS`.

    What modules begin with as zeros or ones is random as well: it would hide what others do.
    """
    mx.random.seed(7)
    model = make_model(config_of(model_type))
    model.load_weights([*_shaken(model)], strict=False)
    model.set_dtype(PRECISIONS[precision])
    if precision != "float32":
        # MLX's CPU has no experts in half precision, so these have 4 bits everywhere.
        quantize(model, 32, 4, class_predicate=_is_quantized if precision == "4 bits" else _is_expert)
    mx.eval(model.parameters())
    return model


def _shaken(model: Any) -> Iterator[tuple[str, mx.array]]:
    for name, array in cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters())):
        if mx.issubdtype(array.dtype, mx.floating) and array.size > 1 and mx.all(array == array.reshape(-1)[0]).item():
            # Trained attention looks at few places, which is what makes a wrong position show.
            yield name, array * (4 if "q_norm" in name else 1) + 0.2 * mx.random.normal(array.shape).astype(array.dtype)


def _is_quantized(path: str, module: Any) -> bool:
    # afm7's fused layers cannot be quantized by this MLX.
    is_known = hasattr(module, "to_quantized") and type(module).__name__ != "FusedLinear"
    return bool(is_known and module.weight.shape[-1] % 32 == 0)


def _is_expert(path: str, module: Any) -> bool:
    return isinstance(module, SwitchLinear) and _is_quantized(path, module)
