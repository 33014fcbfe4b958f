"""A tiny random encoder on disk: BERT, XLM-RoBERTa or ModernBERT, by mlx-embeddings' own classes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tests.support.tiny_model import tiny_tokenizer

_WIDTH = 64
_CONTEXT = 128
_CONFIG: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 2 * _WIDTH,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": _CONTEXT},
    "xlm-roberta": {"max_position_embeddings": _CONTEXT + 2, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    "modernbert": {
        "max_position_embeddings": _CONTEXT,
        "local_attention": 16,
        "global_attn_every_n_layers": 3,
        "architectures": ["ModernBertModel"],
    },
}


def write_tiny_encoder(folder: Path, model_type: str, *, seed: int = 0) -> Path:
    """Write the model into *folder* and return it; a text is `<|im_start|>`, its characters, `<|im_end|>`."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True)
    tokenizer, tokenizer_config, vocab_size = tiny_tokenizer(_CONTEXT)
    start, end = (
        next(token for token in tokenizer["added_tokens"] if token["content"] == content)
        for content in ("<|im_start|>", "<|im_end|>")
    )
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": start["content"], "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": end["content"], "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            token["content"]: {"id": token["content"], "ids": [token["id"]], "tokens": [token["content"]]}
            for token in (start, end)
        },
    }
    config = {"model_type": model_type, "vocab_size": vocab_size, **_CONFIG, **_CONFIGS[model_type]}
    module = importlib.import_module(f"mlx_embeddings.models.{model_type.replace('-', '_')}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder
