"""From a request to tokens: checks, chat template, tokenizer, context. Runs on worker threads and touches no mlx."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlxd.engine.answer.format import format_of
from mlxd.engine.base import (
    ChatPrompt,
    EngineFacts,
    GenerationRequest,
    PreparedPrompt,
    TextKind,
    TextPrompt,
)
from mlxd.engine.chat_template import ChatTemplate
from mlxd.engine.checkpoint import before_thoughts, places, positions
from mlxd.engine.fault import tokenizing
from mlxd.engine.process import Processes
from mlxd.engine.prompt_check import PromptLength, check_bias, foreign_token
from mlxd.engine.template_traits import choose_reasoning
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.quote import shown

if TYPE_CHECKING:
    from mlxd.engine.grammar import Grammars  # imports mlx


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Rendered:
    """What a template made of a chat."""

    text: str
    marked_text: str  # with marks in it (`checkpoint.py`); empty where there is none
    is_effort_ignored: bool


class PromptRenderer:
    """Prepares the prompts of one model."""

    def __init__(
        self,
        model_id: str,
        tokenizer: Any,
        facts: EngineFacts,
        grammars: Grammars,
        processes: Processes,
    ) -> None:
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._facts = facts
        self._grammars = grammars
        self._length = PromptLength(model_id, tokenizer, facts.context_length)
        self._template = ChatTemplate(model_id, tokenizer, processes)

    @property
    def grammars(self) -> Grammars:
        """The compiled grammars, which take memory."""
        return self._grammars

    def prepare(self, request: GenerationRequest, is_given_up: Callable[[], bool] = lambda: False) -> PreparedPrompt:
        """Render, tokenize and check against the context; a rendering ends when *is_given_up* says so.

        Raises:
            TemplateFailed: the chat template does not end, or takes too much.
            RequestCancelled: it was given up.
            InvalidRequest: a sampling parameter is out of its range, the template refuses the messages, the prompt is
                empty, a token id is out of range, or the constraint cannot be enforced.
            ContextLengthExceeded: the prompt alone is over the context; both numbers are in its data.
        """
        check_bias(request.sampling, self._facts.vocab_size)
        kind = TextKind.CONTENT
        ignored: tuple[str, ...] = ()
        is_chat = isinstance(request.prompt, ChatPrompt)
        # The answer to a chat begins anew, but where the last message is its beginning.
        is_continuation = not isinstance(request.prompt, ChatPrompt) or request.prompt.continues
        field = "messages" if is_chat else "prompt"
        match request.prompt:
            case ChatPrompt():
                for message in request.prompt.messages:
                    # A template may leave out what the model has thought, and nothing of what it is told.
                    if message.get("role") != "assistant" and isinstance(message.get("content"), str):
                        self._length.refuse_far_too_long(message["content"], field)
                rendered = self._render(request.prompt, is_given_up)
                text, ignored = rendered.text, ("reasoning_effort",) * rendered.is_effort_ignored
                found = places(text, rendered.marked_text)
                if self._tokenizer.has_thinking and not request.prompt.continues:
                    found = before_thoughts(text, found, self._tokenizer.think_start)
                tokens, checkpoints = self._encode(text, field, found, add_special_tokens=False)
                if self._tokenizer.has_thinking and self._ends_inside_thinking(text, request.prompt):
                    kind = TextKind.REASONING
            case TextPrompt(text=text):
                bos = self._tokenizer.bos_token
                add_special_tokens = bos is None or not text.startswith(bos)
                tokens, checkpoints = self._encode(text, field, (), add_special_tokens=add_special_tokens)
            case _:
                tokens, checkpoints = list(request.prompt.tokens), ()
        self._check_range(tokens)
        max_tokens = self._length.max_tokens(len(tokens), request, field)
        if request.logprobs is not None or request.scores_prompt:
            self._grammars.read_tokens("logprobs")  # here and not on the device thread
        if request.constraint is not None and request.sampling.ignore_eos:
            raise InvalidRequest(
                "ignore_eos asks for an answer without end, and a format or a required call ends it; send one of them",
                param="ignore_eos",
            )
        grammar = None if request.constraint is None else self._grammars.compile(request.constraint, is_given_up)
        tools = request.prompt.tools if isinstance(request.prompt, ChatPrompt) else None
        budget = self._length.thinking_budget(request, max_tokens)
        return PreparedPrompt(
            tuple(tokens), max_tokens, kind, is_continuation, tools, grammar, checkpoints, budget, ignored
        )

    def _render(self, prompt: ChatPrompt, is_given_up: Callable[[], bool]) -> _Rendered:
        own = format_of(self._tokenizer)
        if own is not None and own.adapt is not None:
            prompt = own.adapt(prompt)
        if not self._facts.chat_template:
            raise InvalidRequest(
                f"model '{self._model_id}' has no chat template",
                hint="send the text to /v1/completions",
                param="messages",
            )
        tools = None if prompt.tools is None else list(prompt.tools.shown)
        traits = self._template.traits(tools, is_given_up)
        reasoning = choose_reasoning(prompt.reasoning_effort, prompt.thinking, traits)
        variables = {**reasoning.variables, **prompt.template_kwargs}
        _log.debug(
            "a chat for %s: effort %s, thinking %s, %s; variables of its client: %d",
            self._model_id,
            shown(prompt.reasoning_effort),
            prompt.thinking,
            reasoning.variables,
            len(prompt.template_kwargs),
        )
        text, marked_text = self._template.render(prompt, tools, variables, is_given_up)
        return _Rendered(text, marked_text, is_effort_ignored=reasoning.is_ignored)

    def _ends_inside_thinking(self, text: str, prompt: ChatPrompt) -> bool:
        """Tell whether the answer begins inside the thinking: the template or the client's beginning has opened it."""
        start, end = self._tokenizer.think_start, self._tokenizer.think_end
        begun = str(prompt.messages[-1].get("content") or "").strip() if prompt.continues else ""
        if start in begun or end in begun:
            return begun.rfind(start) > begun.rfind(end)
        # What stands before the client's beginning is the template's.
        return text[: text.rfind(begun)].rstrip().endswith(start) if begun else text.rstrip().endswith(start)

    def _encode(
        self, text: str, field: str, text_places: Sequence[int], *, add_special_tokens: bool
    ) -> tuple[list[int], tuple[int, ...]]:
        """Tokenize *text*, and find its checkpoints."""
        self._length.refuse_far_too_long(text, field)
        with tokenizing(self._model_id):
            if not text_places or not has_plain_encode(self._tokenizer):
                return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens)), ()
            batch = self._tokenizer._tokenizer(text, add_special_tokens=add_special_tokens)  # noqa: SLF001
            checkpoints = () if batch.encodings is None else positions(batch.encodings[0], text_places)
            return list(batch["input_ids"]), checkpoints

    def _check_range(self, tokens: list[int]) -> None:
        wrong = foreign_token(tokens, self._facts.vocab_size)
        if wrong is not None:
            raise InvalidRequest(
                f"token {wrong} is not one of '{self._model_id}': 0..{self._facts.vocab_size - 1}", param="prompt"
            )


def has_plain_encode(tokenizer: Any) -> bool:
    """Whether its `encode` gives the tokens of a call, which also says where they are in the text."""
    from transformers import PreTrainedTokenizerBase  # a second; a tokenizer has imported it

    inner = tokenizer._tokenizer  # noqa: SLF001
    is_inherited = type(inner).__call__ is PreTrainedTokenizerBase.__call__
    return is_inherited and getattr(inner.encode, "__func__", None) is PreTrainedTokenizerBase.encode
