"""Tiny models of several of mlx-lm's architectures, with random weights and nothing on disk."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 110,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
_MAMBA2: dict[str, Any] = {
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 128,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "n_groups": 1,
    "use_bias": False,
    "use_conv_bias": True,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = _EXPERTS | {
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "rope_scaling": {"type": "yarn", "factor": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
}
_LINEAR = _EXPERTS | {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "partial_rotary_factor": 0.5,
    "head_dim": 32,
}
_GEMMA: dict[str, Any] = {"head_dim": 32, "query_pre_attn_scalar": 32}

# By what is special about each.
_SPECIAL: Mapping[str, dict[str, Any]] = {
    "llama": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 64},
    "qwen2": {"tie_word_embeddings": True, "sliding_window": 64},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {"rope_scaling": None},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA | {"sliding_window": 64, "sliding_window_pattern": 2},
    "gpt_oss": {"head_dim": 32, "sliding_window": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo3": {"sliding_window": 64},
    "exaone4": {
        "head_dim": 16,
        "tie_word_embeddings": True,
        "rope_scaling": None,
        "sliding_window": 64,
        "sliding_window_pattern": "LLLG",
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "qwen3_next": _LINEAR | {"full_attention_interval": 2},
    "falcon_h1": _MAMBA2 | {"head_dim": 32},
    "nemotron_h": _MAMBA2
    | {
        "hybrid_override_pattern": list("M*M-"),
        "attention_bias": False,
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
    },
    "granitemoehybrid": _MAMBA2
    | {
        "layer_types": ["mamba", "attention"] * 2,
        "attention_bias": False,
        "shared_intermediate_size": 32,
        **dict.fromkeys(("embedding_multiplier", "attention_multiplier", "logits_scaling", "residual_multiplier"), 1.0),
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    },
    "mamba": {
        "state_size": 16,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 8,
    },
    "mamba2": _MAMBA2
    | {
        "num_heads": 4,
        "head_dim": 32,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": 8,
    },
    "lfm2": {
        "layer_types": ["conv", "full_attention"] * 2,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "recurrent", "attention"],
        "attention_bias": False,
        "conv1d_width": 4,
        "attention_window_size": 64,
        "logits_soft_cap": 30.0,
        "num_key_value_heads": 1,
    },
    "kimi_linear": _LATENT
    | {
        "linear_attn_config": {
            "num_heads": 2,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
            "kda_layers": [1, 2, 3],
            "full_attn_layers": [4],
        },
        "head_dim": 16,
        "model_max_length": 4096,
    },
}
ARCHITECTURES: Mapping[str, dict[str, Any]] = {
    name: {"model_type": name} | _COMMON | special for name, special in _SPECIAL.items()
}

# Attention in chunks of 64 tokens, whose caches cannot be merged.
LLAMA4: Mapping[str, Any] = {
    "model_type": "llama4",
    "text_config": {
        "attention_bias": False,
        "attention_chunk_size": 64,
        "head_dim": 16,
        "hidden_size": 64,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 32,
        "intermediate_size_mlp": 64,
        "max_position_embeddings": 4096,
        "model_type": "llama4_text",
        "num_attention_heads": 4,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "use_qk_norm": True,
        "vocab_size": 110,
    },
}


def make_model(config: Mapping[str, Any]) -> Any:
    """Return the `mlx.nn.Module` of a config; its random weights are made when they are first used."""
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    return module.Model(module.ModelArgs.from_dict(dict(config)))
