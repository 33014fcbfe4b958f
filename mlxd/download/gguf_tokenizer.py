"""The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`, which transformers reads.

Only byte-level BPE (GGUF's "gpt2" model) with a pre-tokenizer that is listed here. Must not import mlx: arrays of the
metadata are turned into plain values by `tolist` and `item`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mlxd.download.errors import CannotConvert

# llama.cpp's token types: 1 is an ordinary token.
_CONTROL = 3
_USER_DEFINED = 4

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# GGUF names the pre-tokenizer and leaves its rules to the reader; SmolLM2's splits digits one by one.
_PRE_TOKENIZERS: Mapping[str, dict[str, Any]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}


def write_tokenizer(metadata: Mapping[str, Any], folder: Path, open_file: Callable[[Path], BinaryIO]) -> None:
    """Write the two files of the tokenizer, with the chat template, into *folder*.

    Raises:
        CannotConvert: the tokenizer is of another kind.
    """
    model, pre_tokenizer = metadata.get("tokenizer.ggml.model"), str(metadata.get("tokenizer.ggml.pre"))
    if model != "gpt2" or pre_tokenizer not in _PRE_TOKENIZERS:
        raise CannotConvert(f"GGUF tokenizers of the kind {model!r}, {pre_tokenizer!r} cannot be converted")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"].tolist()
    added = [
        _added_token(token_id, tokens[token_id], special=kind == _CONTROL)
        for token_id, kind in enumerate(types)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre_tokenizer],
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: token_id for token_id, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"].item(),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id.item()]
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        with open_file(folder / name) as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def _added_token(token_id: int, content: str, *, special: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **flags, "special": special}
