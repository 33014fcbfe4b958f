"""The tokenizer of a GGUF file as `tokenizer.json` and `tokenizer_config.json`, which transformers reads.

Byte-level BPE (GGUF's "gpt2" model) with a pre-tokenizer that is listed here, and SentencePiece's BPE (GGUF's "llama").
Must not import mlx.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxd.download.errors import CannotConvert
from mlxd.download.gguf_file import Metadata

# llama.cpp's token types: 1 is an ordinary token.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "▁"

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = {**_BYTE_LEVEL, "use_regex": False}
# What the makers of these models split words by, of which llama.cpp keeps the name alone.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class _PreTokenizer:
    """What a name of llama.cpp's stands for."""

    steps: tuple[Mapping[str, Any], ...]
    ignores_merges: bool = False  # a word that is a token stays whole
    adds_bos: bool = False  # where the file does not say
    normalizer: Mapping[str, Any] | None = None


def _split(pattern: str) -> tuple[Mapping[str, Any], ...]:
    return ({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, _BYTES_ONLY)


_PRE_TOKENIZERS: Mapping[str, _PreTokenizer] = {
    "gpt-2": _PreTokenizer((_BYTE_LEVEL,)),
    "smollm": _PreTokenizer(({"type": "Digits", "individual_digits": True}, _BYTE_LEVEL)),
    "llama-bpe": _PreTokenizer(_split(_LLAMA3), ignores_merges=True, adds_bos=True),
    "qwen2": _PreTokenizer(_split(_QWEN2), normalizer={"type": "NFC"}),
    "tekken": _PreTokenizer(_split(_TEKKEN), ignores_merges=True, adds_bos=True),
}
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def make_tokenizer(metadata: Metadata, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of the two files of the tokenizer by their names, with the chat template.

    Raises:
        CannotConvert: the tokenizer is of another kind, or parts of it are missing.
    """
    vocabulary = _Vocabulary(metadata)
    model, pre_tokenizer = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if model == "llama":
        tokenizer, adds_bos = _sentence_piece(vocabulary), True
    elif model == "gpt2":
        known = _find_pre_tokenizer(pre_tokenizer)
        tokenizer, adds_bos = _byte_level(vocabulary, known), known.adds_bos
    else:
        raise CannotConvert(
            f"GGUF tokenizers of the kind {model!r}, {pre_tokenizer!r} cannot be converted; gpt2 and llama can"
        )
    adds_bos = vocabulary.flag("add_bos_token", default=adds_bos)
    adds_eos = vocabulary.flag("add_eos_token", default=False)
    tokenizer["post_processor"] = _post_processor(vocabulary, adds_bos=adds_bos, adds_eos=adds_eos)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "add_eos_token": adds_eos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = vocabulary.special(key)
        if token is not None:
            settings[f"{name}_token"] = token
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}


class _Vocabulary:
    """The tokens of a file by their ids, and what it says of them."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self.array("tokens")
        self.types: list[int] = [int(kind) for kind in self.array("token_type")]
        self.ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for token_id, token in enumerate(self.tokens) if self.ids[token] != token_id)
            raise CannotConvert(f"the GGUF file has the token {twice!r} twice")
        if len(self.types) != len(self.tokens):
            raise CannotConvert(f"the GGUF file has {len(self.tokens)} tokens and the types of {len(self.types)}")

    def array(self, name: str) -> list[Any]:
        value = self._metadata.get(f"tokenizer.ggml.{name}")
        if value is None or isinstance(value, (str, int, float)):
            raise CannotConvert(f"the GGUF file lacks tokenizer.ggml.{name}")
        return list(value)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        return value if isinstance(value, bool) else default

    def special(self, key: str) -> str | None:
        """Return the token that the file names as its bos, eos, unknown or padding."""
        token_id = self._metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is None:
            return None
        if not isinstance(token_id, int) or not 0 <= token_id < len(self.tokens):
            raise CannotConvert(f"the GGUF file names token {token_id} as its {key}, of {len(self.tokens)}")
        return self.tokens[token_id]

    def added(self) -> list[dict[str, Any]]:
        """Return the tokens that are found in a text before anything else."""
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": token_id, "content": self.tokens[token_id], **flags, "special": kind != _USER_DEFINED}
            for token_id, kind in enumerate(self.types)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]


def _find_pre_tokenizer(name: Any) -> _PreTokenizer:
    known = _PRE_TOKENIZERS.get(_ALIASES.get(name, name)) if isinstance(name, str) else None
    if known is not None:
        return known
    names = ", ".join([*_PRE_TOKENIZERS, *_ALIASES])
    if name is None:
        raise CannotConvert(
            f"the GGUF file does not name its pre-tokenizer (tokenizer.ggml.pre), so how it splits words is not known"
            f"\nknown are {names}",
            hint="a newer conversion of the same model",
        )
    raise CannotConvert(f"the pre-tokenizer {name!r} of the GGUF file is not known; known are {names}")


def _byte_level(vocabulary: _Vocabulary, pre_tokenizer: _PreTokenizer) -> dict[str, Any]:
    merges = [merge.split(" ", 1) for merge in vocabulary.array("merges")]
    ids = vocabulary.ids
    for pair in merges:
        if len(pair) != 2 or pair[0] not in ids or pair[1] not in ids or pair[0] + pair[1] not in ids:
            raise CannotConvert(f"the GGUF file has the merge {' '.join(pair)!r} of what are no tokens")
    steps = pre_tokenizer.steps
    return {
        **_frame(vocabulary),
        "normalizer": pre_tokenizer.normalizer,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)},
        "decoder": _BYTE_LEVEL,
        "model": {**_bpe(vocabulary, merges), "ignore_merges": pre_tokenizer.ignores_merges},
    }


def _sentence_piece(vocabulary: _Vocabulary) -> dict[str, Any]:
    """Return SentencePiece's BPE: no words, the merge with the best score first, bytes for what is no token.

    As transformers writes it for Llama 2, whose file has no list of merges either.
    """
    scores = [float(score) for score in vocabulary.array("scores")]
    if len(scores) != len(vocabulary.tokens):
        raise CannotConvert(f"the GGUF file has {len(vocabulary.tokens)} tokens and the scores of {len(scores)}")
    if f"<0x{0:02X}>" not in vocabulary.ids:
        raise CannotConvert("the SentencePiece tokenizer of the GGUF file has no tokens for bytes")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    adds_space = vocabulary.flag("add_space_prefix", default=True)
    normalizers = [{"type": "Prepend", "prepend": _SPACE}] if adds_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if adds_space else []
    spaces = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    return {
        **_frame(vocabulary),
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            **_bpe(vocabulary, _merges_by_score(vocabulary, scores)),
            "unk_token": next((token for token, kind in _typed(vocabulary) if kind == _UNKNOWN), None),
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
        },
    }


def _typed(vocabulary: _Vocabulary) -> Iterator[tuple[str, int]]:
    return zip(vocabulary.tokens, vocabulary.types, strict=True)


def _merges_by_score(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[list[str]]:
    """Return every way to make an ordinary token of two, the best score first; ties by the order of the vocabulary."""
    ordinary = {token: vocabulary.ids[token] for token, kind in _typed(vocabulary) if kind == 1}
    found: list[tuple[float, int, int, str, str]] = []
    for token, token_id in ordinary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ordinary and right in ordinary:
                found.append((-scores[token_id], token_id, cut, left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def _frame(vocabulary: _Vocabulary) -> dict[str, Any]:
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": vocabulary.added()}


def _bpe(vocabulary: _Vocabulary, merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _post_processor(vocabulary: _Vocabulary, *, adds_bos: bool, adds_eos: bool) -> dict[str, Any] | None:
    """Return what puts the beginning and the end around a plain prompt; chat templates write them themselves."""
    bos, eos = vocabulary.special("bos") if adds_bos else None, vocabulary.special("eos") if adds_eos else None
    if bos is None and eos is None:
        return None

    def around(*letters: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for type_id, letter in enumerate(letters):
            text = {"Sequence": {"id": letter, "type_id": type_id}}
            before = [] if bos is None else [{"SpecialToken": {"id": bos, "type_id": type_id}}]
            after = [] if eos is None else [{"SpecialToken": {"id": eos, "type_id": type_id}}]
            parts += [*before, text, *after]
        return parts

    special = {
        token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]}
        for token in (bos, eos)
        if token is not None
    }
    return {"type": "TemplateProcessing", "single": around("A"), "pair": around("A", "B"), "special_tokens": special}
