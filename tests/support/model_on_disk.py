"""A tiny random model of any of mlx-lm's types as a folder that the daemon loads: config, weights and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from tests.support.every_architecture import config_of, make_any
from tests.support.tiny_model import END, tiny_tokenizer, tiny_vocabulary

_CONTEXT_TOKENS = 2048


def write_any_model(folder: Path, model_type: str, **changes: Any) -> Path:
    """Write a model of *model_type* into *folder*, and return it; *changes* are made to its config afterwards."""
    folder.mkdir(parents=True)
    model = make_any(model_type)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    tokenizer, tokenizer_config, _ = tiny_tokenizer(_CONTEXT_TOKENS)
    # transformers warns of a `rope_scaling` of None.
    config = {key: value for key, value in config_of(model_type).items() if value is not None}
    config |= {"eos_token_id": tiny_vocabulary()[END]} | changes
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content))
    return folder
