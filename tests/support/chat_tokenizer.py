"""Tokenizers as chat models have them, trained on chat templates in a moment: markup is one token, words are few."""

from __future__ import annotations

import re
import string
from functools import lru_cache
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.chat_template import REAL

_SIZE = 1200
_MARKUP = re.compile(r"<\|?/?\w+\|?>|\[/?[A-Z_]+\]")
# Of GPT-4 and most since (openai/tiktoken, `cl100k_base`), without its possessive quantifiers.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@lru_cache
def byte_level() -> TokenizerWrapper:
    """Return one in the style of Qwen, Llama 3 and gpt-oss: byte-level BPE over words, and normalized text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, pre_tokenizers.ByteLevel.alphabet())


@lru_cache
def sentence_piece() -> TokenizerWrapper:
    """Return one in the style of Gemma and Mistral: BPE over text whose spaces are characters, words not apart."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _trained(tokenizer, ["▁", *string.printable])


KINDS = {"byte level": byte_level, "sentence piece": sentence_piece}


def _trained(tokenizer: Tokenizer, alphabet: list[str]) -> TokenizerWrapper:
    markup = sorted({mark for template in REAL.values() for mark in _MARKUP.findall(template)})
    special: list[Any] = ["<unk>", "<s>", "</s>", *(AddedToken(mark, normalized=False) for mark in markup)]
    trainer = trainers.BpeTrainer(
        vocab_size=_SIZE, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    # By words: merges over the whole of a text would learn it by heart.
    tokenizer.train_from_iterator((word for text in REAL.values() for word in text.split()), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    return TokenizerWrapper(fast)
