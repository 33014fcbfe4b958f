"""From a request to tokens: checks, chat template, tokenizer, context. Runs on worker threads and touches no mlx."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlxd.engine.base import (
    ChatPrompt,
    EngineFacts,
    GenerationRequest,
    PreparedPrompt,
    SamplingParams,
    TextKind,
    TextPrompt,
)
from mlxd.engine.checkpoint import before_thoughts, marked_messages, places, positions
from mlxd.engine.fault import tokenizing
from mlxd.engine.process import Processes
from mlxd.protocol.errors import ContextLengthExceeded, InvalidRequest

if TYPE_CHECKING:
    from mlxd.engine.grammar import Grammars  # imports mlx

_log = logging.getLogger(__name__)

# A text is longer than its context when this many characters per token of context are.
GENEROUS_CHARACTERS = 16


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
        """Take mlx-lm's `TokenizerWrapper`, what was measured at the load, and what compiles and renders."""
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._facts = facts
        self._grammars = grammars
        self._processes = processes

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
            ContextLengthExceeded: prompt + max_tokens is over the context.
        """
        check_sampling(request.sampling, self._facts.vocab_size)
        kind = TextKind.CONTENT
        is_chat = isinstance(request.prompt, ChatPrompt)
        # The answer to a chat begins anew, but where the last message is its beginning.
        is_continuation = not isinstance(request.prompt, ChatPrompt) or request.prompt.continues
        field = "messages" if is_chat else "prompt"
        match request.prompt:
            case ChatPrompt():
                for message in request.prompt.messages:
                    # A template may leave out what the model has thought, and nothing of what it is told.
                    if message.get("role") != "assistant" and isinstance(message.get("content"), str):
                        self._refuse_far_too_long("a message", message["content"], field)
                text, marked_text = self._render(request.prompt, is_given_up)
                found = places(text, marked_text)
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
        max_tokens = self._max_tokens(len(tokens), request.max_tokens, field)
        if request.max_tokens is None and request.default_max_tokens is not None:
            max_tokens = min(max_tokens, request.default_max_tokens)
        if request.logprobs is not None or request.scores_prompt:
            self._grammars.read_tokens("logprobs")  # here and not on the device thread
        grammar = None if request.constraint is None else self._grammars.compile(request.constraint, is_given_up)
        tools = request.prompt.tools if isinstance(request.prompt, ChatPrompt) else None
        return PreparedPrompt(tuple(tokens), max_tokens, kind, is_continuation, tools, grammar, checkpoints)

    def _render(self, prompt: ChatPrompt, is_given_up: Callable[[], bool]) -> tuple[str, str]:
        """Return the text, and the one with marks in it, which is empty where there is none."""
        if not self._facts.chat_template:
            raise InvalidRequest(
                f"model '{self._model_id}' has no chat template",
                hint="send the text to /v1/completions",
                param="messages",
            )
        variables = {**self._reasoning(prompt.reasoning_effort), **prompt.template_kwargs}
        if prompt.tools is not None and not self._facts.has_tool_calling:
            raise InvalidRequest(
                f"model '{self._model_id}' cannot call tools: its chat template has no format for calls",
                hint="leave tools out, or take a model that was trained for them",
                param="tools",
            )
        tools = None if prompt.tools is None else list(prompt.tools.tools)
        if has_own_renderer(self._tokenizer):
            return self._render_here(prompt, tools, variables)
        job: dict[str, Any] = {
            "template": self._template(tools),
            "messages": prompt.messages,
            "marked": marked_messages(prompt.messages, continues=prompt.continues),
            "tools": tools,
            "generation": not prompt.continues,
            "continues": prompt.continues,
            "variables": {
                **self._tokenizer.special_tokens_map,
                "enable_thinking": bool(self._tokenizer.has_thinking),
                **variables,
            },
        }
        return self._processes.render(self._model_id, job, is_given_up)

    def _template(self, tools: list[Any] | None) -> str:
        try:
            return str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several by name, and none is the default
            raise self._refused(error) from error

    def _render_here(self, prompt: ChatPrompt, tools: list[Any] | None, variables: dict[str, Any]) -> tuple[str, str]:
        """Render by Python of mlx-lm or transformers; it did not come with the model, and ends."""
        options = {**variables, "add_generation_prompt": not prompt.continues}
        if tools is not None:
            options["tools"] = tools
        if prompt.continues:
            options["continue_final_message"] = True
        marked = marked_messages(prompt.messages, continues=prompt.continues)

        def render(replaced: Mapping[int, Mapping[str, Any]]) -> str:
            messages = [dict(replaced.get(index, message)) for index, message in enumerate(prompt.messages)]
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))

        try:
            text = render({})
        except Exception as error:
            _log.debug("the chat template of %s failed", self._model_id, exc_info=True)
            raise self._refused(error) from error
        try:
            return text, render(marked)
        except Exception:  # noqa: BLE001 the prompt is there, and marks may be what a renderer refuses
            return text, ""

    def _refused(self, error: Exception) -> InvalidRequest:
        return InvalidRequest(
            f"the chat template of '{self._model_id}' refuses these messages: {error}", param="messages"
        )

    def _ends_inside_thinking(self, text: str, prompt: ChatPrompt) -> bool:
        """Tell whether the answer begins inside the thinking: the template or the client's beginning has opened it."""
        start, end = self._tokenizer.think_start, self._tokenizer.think_end
        begun = str(prompt.messages[-1].get("content") or "").strip() if prompt.continues else ""
        if start in begun or end in begun:
            return begun.rfind(start) > begun.rfind(end)
        # What stands before the client's beginning is the template's.
        return text[: text.rfind(begun)].rstrip().endswith(start) if begun else text.rstrip().endswith(start)

    def _reasoning(self, effort: str | None) -> dict[str, Any]:
        """Return what tells the template how much to think: its own variable, or thinking on and off."""
        if effort is None:
            return {}
        template = self._tokenizer.chat_template
        has_variable = isinstance(template, str) and "reasoning_effort" in template
        if not has_variable and not self._facts.has_thinking and effort != "none":
            raise InvalidRequest(
                f"model '{self._model_id}' does not reason: reasoning_effort {effort!r} would change nothing",
                hint="leave reasoning_effort out",
                param="reasoning_effort",
            )
        return {"reasoning_effort": effort, "enable_thinking": effort != "none"}

    def _encode(
        self, text: str, field: str, text_places: Sequence[int], *, add_special_tokens: bool
    ) -> tuple[list[int], tuple[int, ...]]:
        """Tokenize *text*, and find its checkpoints."""
        self._refuse_far_too_long("the prompt", text, field)
        with tokenizing(self._model_id):
            if not text_places or not has_plain_encode(self._tokenizer):
                return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens)), ()
            batch = self._tokenizer._tokenizer(text, add_special_tokens=add_special_tokens)  # noqa: SLF001
            checkpoints = () if batch.encodings is None else positions(batch.encodings[0], text_places)
            return list(batch["input_ids"]), checkpoints

    def _refuse_far_too_long(self, what: str, text: str, field: str) -> None:
        """Refuse a text by its beginning.

        30 MB take a tokenizer half a minute and some GB, in which the prompts of others wait.
        """
        context = self._facts.context_length
        beginning = GENEROUS_CHARACTERS * context
        if len(text) <= beginning:
            return
        with tokenizing(self._model_id):
            tokens = len(self._tokenizer.encode(text[:beginning], add_special_tokens=False))
        # Twice the context, so that what is cut off the last word decides nothing.
        if tokens > 2 * context:
            raise ContextLengthExceeded(
                f"{what} has {len(text)} characters, and its first {beginning} are {tokens} tokens already,"
                f" more than the context of {context} tokens of '{self._model_id}'",
                param=field,
            )

    def _check_range(self, tokens: list[int]) -> None:
        wrong = foreign_token(tokens, self._facts.vocab_size)
        if wrong is not None:
            raise InvalidRequest(
                f"token {wrong} is not one of '{self._model_id}': 0..{self._facts.vocab_size - 1}", param="prompt"
            )

    def _max_tokens(self, prompt_tokens: int, wanted: int | None, field: str) -> int:
        """Resolve max_tokens against the context; an error names *field* where the prompt is at fault."""
        if prompt_tokens == 0:
            raise InvalidRequest("the prompt is empty", param=field)
        context = self._facts.context_length
        room = context - prompt_tokens
        if wanted is None and room < 1:
            raise ContextLengthExceeded(
                f"the prompt has {prompt_tokens} tokens, which leaves no room in the context of {context} tokens"
                f" of '{self._model_id}'",
                param=field,
            )
        if wanted is not None and wanted > room:
            raise ContextLengthExceeded(
                f"the prompt has {prompt_tokens} tokens and max_tokens is {wanted}: together {prompt_tokens + wanted},"
                f" more than the context of {context} tokens of '{self._model_id}'",
                param="max_tokens" if room > 0 else field,
            )
        if wanted is not None and wanted < 1:
            raise InvalidRequest(f"max_tokens is {wanted}; the least is 1", param="max_tokens")
        return room if wanted is None else wanted


def has_own_renderer(tokenizer: Any) -> bool:
    """Whether Python of mlx-lm or transformers renders the messages, and no template that came with the model."""
    from transformers import PreTrainedTokenizerBase  # a second; a tokenizer has imported it

    inner = tokenizer._tokenizer  # noqa: SLF001 mlx-lm's wrapper says it nowhere else
    is_inherited = type(inner).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    return tokenizer._chat_template is not None or not is_inherited  # noqa: SLF001


def has_plain_encode(tokenizer: Any) -> bool:
    """Whether its `encode` gives the tokens of a call, which also says where they are in the text."""
    from transformers import PreTrainedTokenizerBase  # as above

    inner = tokenizer._tokenizer  # noqa: SLF001
    is_inherited = type(inner).__call__ is PreTrainedTokenizerBase.__call__
    return is_inherited and getattr(inner.encode, "__func__", None) is PreTrainedTokenizerBase.encode


def foreign_token(tokens: Sequence[int], vocab_size: int) -> int | None:
    """Return a token that the model does not have; None when all are its own."""
    # Of every prompt: a tokenizer may know more tokens than its model, and MLX reads past the end of the embedding.
    if not tokens or 0 <= min(tokens) <= max(tokens) < vocab_size:
        return None
    return min(tokens) if min(tokens) < 0 else max(tokens)


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Refuse what a sampler would fail on: an exception inside a batch costs other rows their tokens.

    Raises:
        InvalidRequest: names the parameter and its bounds.
    """
    bounds = {
        "temperature": (0.0, math.inf),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "top_k": (0, math.inf),
        "xtc_probability": (0.0, 1.0),
        "xtc_threshold": (0.0, 0.5),
        "presence_penalty": (-math.inf, math.inf),
        "frequency_penalty": (-math.inf, math.inf),
    }
    for name, (least, most) in bounds.items():
        value = getattr(params, name)
        if not (math.isfinite(value) and least <= value <= most):
            at_most = f" and at most {most:g}" if math.isfinite(most) else ""
            raise InvalidRequest(f"{name} is {value}; it is a number of at least {least:g}{at_most}", param=name)
    if not (math.isfinite(params.repetition_penalty) and params.repetition_penalty > 0):
        raise InvalidRequest(
            f"repetition_penalty is {params.repetition_penalty}; it is a number above 0", param="repetition_penalty"
        )
    for token, bias in params.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; the tokens are 0..{vocab_size - 1}", param="logit_bias"
            )
        if not math.isfinite(bias):
            raise InvalidRequest(f"logit_bias gives token {token} the bias {bias}", param="logit_bias")
