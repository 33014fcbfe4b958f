"""Finds the format of a model's answers when its tokenizer is read. Knows mlx-lm's wrapper, and touches no array."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

from mlxd.engine.answer.deepseek import DEEPSEEK
from mlxd.engine.answer.format import AnswerFormat, format_of
from mlxd.engine.answer.generic import GENERIC
from mlxd.engine.answer.harmony import HARMONY
from mlxd.engine.answer.listed import LISTED
from mlxd.engine.answer.llama import LLAMA

# Tags, and calls that a parser of mlx-lm reads.
_SEED = AnswerFormat(
    name="seed",
    is_of=lambda template, vocabulary: "<seed:think>" in vocabulary and "<seed:tool_call>" in template,
    thinking=("<seed:think>", "</seed:think>"),
    tags=("<seed:tool_call>", "</seed:tool_call>"),
    parser="qwen3_coder",
)
# As mlx-lm's, in the templates that it does not recognize: of Granite 4, for one.
_HERMES = AnswerFormat(
    name="json_tools",
    is_of=lambda template, _: all(words in template for words in ("<tool_call>", '{"name": ', '"arguments": ')),
    tags=("<tool_call>", "</tool_call>"),
    parser="json_tools",
)
_MAGISTRAL = AnswerFormat(
    name="magistral",
    is_of=lambda template, vocabulary: {"[THINK]", "[/THINK]"} <= vocabulary.keys() and "[THINK]" in template,
    thinking=("[THINK]", "[/THINK]"),
)
# The first one that fits counts.
FORMATS: tuple[AnswerFormat, ...] = (HARMONY, *DEEPSEEK, _SEED, _MAGISTRAL, *LISTED, _HERMES, LLAMA)


def adopt_format(tokenizer: Any) -> None:
    """Tell mlx-lm's `TokenizerWrapper` how its model answers, where mlx-lm has not found out.

    A parser of calls that mlx-lm has found, or that the configuration names, stays. A chat template without a format of
    calls gets the generic one.
    """
    template, vocabulary = _templates(tokenizer), tokenizer.get_vocab()
    found = next((known for known in FORMATS if known.is_of(template, vocabulary)), None)
    if found is not None and found.tags is not None and tokenizer.has_tool_calling:
        return
    if (found is None or found.tags is None) and not tokenizer.has_tool_calling and tokenizer.has_chat_template:
        found = GENERIC if found is None else replace(GENERIC, thinking=found.thinking, markers=found.markers)
    if found is None:
        return
    # The wrapper takes these at its making only, which reads the whole vocabulary once more.
    if found.thinking is not None:
        tokenizer._think_start, tokenizer._think_end = found.thinking  # noqa: SLF001
        tokenizer._think_start_tokens = _tokens(tokenizer, found.thinking[0])  # noqa: SLF001
        tokenizer._think_end_tokens = _tokens(tokenizer, found.thinking[1])  # noqa: SLF001
    if found.tags is not None:
        tokenizer._tool_call_start, tokenizer._tool_call_end = found.tags  # noqa: SLF001
        tokenizer._tool_parser = found.parse or _parser(found)  # noqa: SLF001
    tokenizer._structural_markers += found.markers  # noqa: SLF001
    for end in found.ends:
        if end in vocabulary:
            tokenizer.add_eos_token(end)
    tokenizer.answer_format = found


def _parser(own: AnswerFormat) -> Any:
    return importlib.import_module(f"mlx_lm.tool_parsers.{own.parser}").parse_tool_call


def tool_format(tokenizer: Any) -> str:
    """Return the name of the format in which the model calls tools; empty where there is none."""
    if not tokenizer.has_tool_calling:
        return ""
    own = format_of(tokenizer)
    if own is not None and own.tags is not None:
        return own.name
    return str(tokenizer.tool_parser.__module__.rpartition(".")[2])


def _tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _templates(tokenizer: Any) -> str:
    """Return the text of all chat templates: a model may have one by name for tools."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        return "\n".join(map(str, template.values()))
    return template if isinstance(template, str) else ""
