"""A tiny random model for long prompts of agents: words are tokens, tools have a format, and an answer ends by itself.

It writes random tokens; after some of them it must end. So its answers have a dozen tokens on average, are never
empty, and need no `max_tokens`. A grammar decides where there is one, as with every model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.support.templates import TEMPLATES
from tests.support.tiny_model import END, write_tiny_model

CONTEXT = 131_072
_SIZE = 8000
_ENDING = 12  # one word in so many ends an answer
_NEVER = -80.0  # times 0.5 to 1, by the last norm: what is added to a logit that no sampler is to reach
_ROOT = Path(__file__).parents[2]


def write_agent_model(folder: Path, *, template: str | None = None, seed: int = 11) -> Path:
    """Write the model into *folder* and return it; its chat template is one of `templates.py`, or the tiny model's."""
    named = None if template is None else TEMPLATES[template]
    write_tiny_model(folder, seed=seed, context=CONTEXT, tools=True, template=named)
    special = [entry["content"] for entry in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]]
    tokenizer = _trained(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": tokenizer.get_vocab_size(), "eos_token_id": tokenizer.token_to_id(END)}
    (folder / "config.json").write_text(json.dumps(config))
    _grow(folder / "model.safetensors", tokenizer, special, seed)
    return folder


def _trained(special: list[str]) -> Tokenizer:
    """Return a byte-level BPE that knows the words of this checkout."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    files = [path for kind in ("mlxd/**/*.py", "mlxctl/**/*.py", "*.md") for path in sorted(_ROOT.glob(kind))]
    tokenizer.train_from_iterator((path.read_text() for path in files), trainer)
    tokenizer.add_special_tokens([token for token in special if "tool_call" not in token])
    tokenizer.add_tokens([token for token in special if "tool_call" in token])
    return tokenizer


def _grow(weights: Path, tokenizer: Tokenizer, special: list[str], seed: int) -> None:
    """Give every token random weights. Only words can be an answer, and only after some of them it ends.

    The first dimension of the residual stream is 1 for every token, as in the tiny model; the second is 1 after a token
    that ends the answer. No layer writes to them.
    """
    rng = np.random.default_rng(seed)
    tensors = load_file(weights)
    width = tensors["model.norm.weight"].shape[0]
    vocabulary = tokenizer.get_vocab()
    size = len(vocabulary)
    embedding = rng.standard_normal((size, width)).astype(np.float32)
    head = (rng.standard_normal((size, width)) * 2 / width**0.5).astype(np.float32)
    embedding[:, 0], head[:, 0] = 1.0, 0.0
    embedding[:, 1], head[:, 1] = 0.0, 0.0
    for token, index in vocabulary.items():
        if token in special:
            head[index] = 0.0
            head[index, 0] = _NEVER
        elif not re.fullmatch(r"Ġ?[A-Za-z]{2,}", token):
            head[index, 0] = _NEVER
        elif index % _ENDING == 0:
            embedding[index, 1] = 1.0
    head[vocabulary[END], 1] = -5 * _NEVER
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[1] = 0.0
    tensors |= {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    save_file(tensors, weights, {"format": "mlx"})
