"""Prompts that are made ready without an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlxd.engine.base import ChatPrompt, EngineFacts, GenerationRequest, PreparedPrompt
from mlxd.engine.grammar import Grammars
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.process import Processes
from mlxd.engine.prompt import PromptRenderer
from mlxd.engine.vocabulary import Vocabulary
from tests.support.processes import PROCESSES

FACTS = EngineFacts(
    weights_bytes=1,
    kv=KvShape(()),
    context_length=10_000,
    vocab_size=10_000,
    has_thinking=False,
    tool_format="json_tools",
    chat_template=True,
)


def renderer_of(tokenizer: Any, facts: EngineFacts = FACTS, processes: Processes = PROCESSES) -> PromptRenderer:
    """Return the renderer of a model with *facts*."""
    grammars = Grammars(tokenizer, Vocabulary(tokenizer), facts.vocab_size, processes)
    return PromptRenderer("tiny", tokenizer, facts, grammars, processes)


def with_template(tokenizer: Any, template: str) -> Any:
    """Return the tokenizer, which has this template from now on."""
    tokenizer.chat_template = template
    return tokenizer


def prepare(renderer: PromptRenderer, messages: Iterable[Mapping[str, Any]], **more: Any) -> PreparedPrompt:
    """Return the prompt of a chat."""
    return renderer.prepare(GenerationRequest(ChatPrompt(tuple(messages), **more)))


def shared_tokens(one: PreparedPrompt, other: PreparedPrompt) -> int:
    """Return how many tokens both begin with."""
    pairs = enumerate(zip(one.tokens, other.tokens, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one.tokens), len(other.tokens)))
