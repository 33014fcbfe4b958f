"""Tokenizers out of GGUF metadata: byte-level BPE by the name of its pre-tokenizer, and SentencePiece's."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mlxd.download.errors import CannotConvert
from mlxd.download.gguf_tokenizer import make_tokenizer
from tests.support.tiny_gguf import TOKENS, TinyModel

CONFIG = {"max_position_embeddings": 512}
# As https://github.com/openai/gpt-2 maps bytes to characters: the printable ones to themselves.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTES = {**{byte: chr(byte) for byte in _PRINTABLE}, **{byte: chr(256 + place) for place, byte in enumerate(_OTHERS)}}


def byte_level(pre_tokenizer: str | None, *words: str, **more: Any) -> Tokenizer:
    """Return a tokenizer that has all bytes, and *words* that the split alone decides about."""
    tokens, merges = [BYTES[byte] for byte in range(256)], []
    for word in words:
        symbols = [BYTES[byte] for byte in word.encode()]
        made = symbols[0]
        for symbol in symbols[1:]:
            merges.append(f"{made} {symbol}")
            made += symbol
            if made not in tokens:
                tokens.append(made)
    special = ["<s>", "</s>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer,
        "tokenizer.ggml.tokens": [*tokens, *special],
        "tokenizer.ggml.merges": list(dict.fromkeys(merges)),
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(special),
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }
    return load({key: value for key, value in metadata.items() if value is not None})


def load(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that transformers would load."""
    return Tokenizer.from_str(json.dumps(make_tokenizer(metadata, CONFIG)["tokenizer.json"]))


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Return the tokens of a text as text."""
    return [tokenizer.decode([token_id]) for token_id in tokenizer.encode(text, add_special_tokens=False).ids]


def test_tokens_keep_their_ids() -> None:
    """Tokens keep their ids, control tokens are special, and the template is kept."""
    files = make_tokenizer(TinyModel().metadata(), CONFIG)
    tokenizer, settings_of = files["tokenizer.json"], files["tokenizer_config.json"]
    assert tokenizer["model"]["vocab"] == {token: token_id for token_id, token in enumerate(TOKENS)}
    assert [token["content"] for token in tokenizer["added_tokens"]] == list(TOKENS[:3])
    assert settings_of["eos_token"] == "<|im_end|>"
    assert settings_of["chat_template"] == "{{ messages[0]['content'] }}"
    assert settings_of["model_max_length"] == 512


@pytest.mark.parametrize(
    ("pre_tokenizer", "expected"),
    [
        ("gpt-2", ["1234", "'", "S", " aB", "!", "!", "\n"]),
        ("smollm", ["1", "2", "3", "4", "'", "S", " aB", "!", "!", "\n"]),
        ("llama-bpe", ["123", "4", "'S", " aB", "!", "!\n"]),
        ("llama3", ["123", "4", "'S", " aB", "!", "!\n"]),
        ("qwen2", ["1", "2", "3", "4", "'S", " aB", "!", "!\n"]),
        ("deepseek-r1-qwen", ["1", "2", "3", "4", "'S", " aB", "!", "!\n"]),
        ("tekken", ["1", "2", "3", "4", "'S", " a", "B", "!", "!\n"]),
    ],
)
def test_words_are_split_as_the_name_says(pre_tokenizer: str, expected: list[str]) -> None:
    """Digits, contractions, case and line ends are kept together as in the model that the name stands for."""
    tokenizer = byte_level(pre_tokenizer, "1234", "'S", " aB", "!\n")
    text = "1234'S aB!!\n"
    assert pieces(tokenizer, text) == expected
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@given(st.text(max_size=60), st.sampled_from(["gpt-2", "smollm", "llama-bpe", "tekken"]))
@settings(max_examples=60)
def test_byte_level_text_comes_back(text: str, pre_tokenizer: str) -> None:
    """Every text is the same after a way through tokens."""
    tokenizer = byte_level(pre_tokenizer, "the", " a")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("pre_tokenizer", "more", "around"),
    [
        ("qwen2", {}, ([], [])),
        ("llama-bpe", {}, (["<s>"], [])),
        ("llama-bpe", {"add_bos_token": False}, ([], [])),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, (["<s>"], ["</s>"])),
    ],
)
def test_what_stands_around_a_plain_prompt(
    pre_tokenizer: str, more: dict[str, Any], around: tuple[list[str], list[str]]
) -> None:
    """A beginning and an end are added as the file says, and as its kind does where it does not say."""
    before, after = around
    assert byte_level(pre_tokenizer, **more).encode("x").tokens == [*before, "x", *after]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "bert"}, r"kind 'bert', 'smollm' cannot be converted; gpt2 and llama can"),
        ({"model": None}, r"kind None"),
        ({"pre": "other"}, r"pre-tokenizer 'other' of the GGUF file is not known; known are gpt-2, smollm, "),
        ({"pre": None}, r"does not name its pre-tokenizer"),
        ({"tokens": None}, r"lacks tokenizer\.ggml\.tokens"),
        ({"token_type": [1]}, r"has 8 tokens and the types of 1"),
        ({"tokens": ["a"] * 8}, r"the token 'a' twice"),
        ({"merges": None}, r"lacks tokenizer\.ggml\.merges"),
        ({"merges": ["a z"]}, r"the merge 'a z' of what are no tokens"),
        ({"merges": ["ab"]}, r"the merge 'ab' of what are no tokens"),
        ({"bos_token_id": 8}, r"names token 8 as its bos, of 8"),
        ({"model": "llama"}, r"lacks tokenizer\.ggml\.scores"),
        ({"model": "llama", "scores": [0.0]}, r"8 tokens and the scores of 1"),
        ({"model": "llama", "scores": [0.0] * 8}, r"has no tokens for bytes"),
    ],
)
def test_what_is_not_known_is_refused(changes: dict[str, Any], words: str) -> None:
    """Tokenizers that are not known, or not whole, are refused by name, never guessed."""
    replaced = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in {**TinyModel().metadata(), **replaced}.items() if value is not None}
    with pytest.raises(CannotConvert, match=words):
        make_tokenizer(metadata, CONFIG)


@pytest.fixture(scope="module")
def trained() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece model as Llama 2's: BPE, digits apart, spaces kept, bytes for the rest."""
    words = random.Random(5)
    syllables = ["ba", "an", "na", "nan", "aa", "to", "ot", "s", "tt", "é"]
    lines = [" ".join("".join(words.choices(syllables, k=words.randint(1, 5))) for _ in range(9)) for _ in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def sentence_piece(trained: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    """The same by way of GGUF metadata."""
    ids = range(trained.vocab_size())
    kinds = [
        2 if trained.is_unknown(i) else 3 if trained.is_control(i) else 6 if trained.is_byte(i) else 1 for i in ids
    ]
    return load(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [trained.id_to_piece(i) for i in ids],
            "tokenizer.ggml.scores": [trained.get_score(i) for i in ids],
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
    )


@given(st.text(st.sampled_from("banaots é \n1?東🙂"), min_size=1, max_size=40))
@example("bananananananan  toot\n\nottos é 東 1234")
@example("aaaaaaaaaaaaaaaaaaaa aaa")
@settings(max_examples=200)
def test_sentence_piece_is_that_of_the_library(
    trained: sentencepiece.SentencePieceProcessor, sentence_piece: Tokenizer, text: str
) -> None:
    """Texts have the tokens that the SentencePiece library itself gives them, and come back the same."""
    found = sentence_piece.encode(text, add_special_tokens=False).ids
    assert found == trained.encode(text)
    assert sentence_piece.decode(found) == text


def test_sentence_piece_begins_with_bos(sentence_piece: Tokenizer) -> None:
    """A plain prompt begins with the token for that; a space stands before the first word, as in Llama 2."""
    assert sentence_piece.encode("banana").tokens[0] == "<s>"
    assert sentence_piece.encode("banana").tokens[1].startswith("▁")
