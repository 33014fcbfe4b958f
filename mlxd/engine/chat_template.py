"""The chat template of one model, and the rendering of messages by it. Runs on worker threads and touches no mlx."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxd.engine.arrangement import Message, arranged
from mlxd.engine.base import ChatPrompt
from mlxd.engine.checkpoint import mark_start, marked_messages
from mlxd.engine.process import Processes
from mlxd.engine.template_traits import PROBES, ProbeChat, TemplateTraits, learn
from mlxd.protocol.errors import InvalidRequest

_log = logging.getLogger(__name__)


class ChatTemplate:
    """Renders the chats of one model."""

    def __init__(self, model_id: str, tokenizer: Any, processes: Processes) -> None:
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._processes = processes
        self._traits: dict[str, TemplateTraits] = {}  # by the text of the template: there may be one for tools

    def traits(self, tools: list[Any] | None, is_given_up: Callable[[], bool]) -> TemplateTraits:
        """Return what the template takes, learned when it is first asked for.

        Raises:
            InvalidRequest: the model has several templates, and none for this chat.
            RequestCancelled: it was given up.
        """
        template = "" if has_own_renderer(self._tokenizer) else self._text(tools)
        if template not in self._traits:
            self._traits[template] = self._learn(template, is_given_up)
        return self._traits[template]

    def _learn(self, template: str, is_given_up: Callable[[], bool]) -> TemplateTraits:
        if has_own_renderer(self._tokenizer):
            texts: list[str | None] | None = [self._probe_here(probe) for probe in PROBES.values()]
        else:
            probes = [{"messages": probe.messages, "variables": probe.variables} for probe in PROBES.values()]
            job = {"template": template, "probes": probes, "variables": self._variables()}
            texts = self._processes.probe(job, is_given_up)
        if texts is None:
            return TemplateTraits()
        traits = learn(template, dict(zip(PROBES, texts, strict=True)))
        _log.debug("the chat template of %s: %s", self._model_id, traits)
        return traits

    def _probe_here(self, probe: ProbeChat) -> str | None:
        messages = [dict(message) for message in probe.messages]
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **probe.variables
            )
        except Exception:  # noqa: BLE001 any that a renderer refuses with
            return None
        return str(text)

    def _variables(self) -> dict[str, Any]:
        return {**self._tokenizer.special_tokens_map, "enable_thinking": bool(self._tokenizer.has_thinking)}

    def render(
        self,
        prompt: ChatPrompt,
        tools: list[Any] | None,
        variables: Mapping[str, Any],
        is_given_up: Callable[[], bool],
    ) -> tuple[str, str]:
        """Return the text, and the one with marks in it (`checkpoint.py`), which is empty where there is none.

        Raises:
            InvalidRequest: the template refuses the messages.
            TemplateFailed: it does not end, or takes too much.
            RequestCancelled: it was given up.
        """
        traits = self.traits(tools, is_given_up)
        messages = arranged(prompt.messages, traits)
        marked = _marked(prompt, messages, traits)
        if has_own_renderer(self._tokenizer):
            return self._render_here(messages, marked, tools, variables, continues=prompt.continues)
        job: dict[str, Any] = {
            "template": self._text(tools),
            "messages": messages,
            "marked": marked,
            "tools": tools,
            "generation": not prompt.continues,
            "continues": prompt.continues,
            "variables": {**self._variables(), **variables},
        }
        return self._processes.render(self._model_id, job, is_given_up)

    def _text(self, tools: list[Any] | None) -> str:
        try:
            return str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several by name, and none is the default
            raise self._refused(error) from error

    def _render_here(
        self,
        messages: Sequence[Message],
        marked: Mapping[int, Message],
        tools: list[Any] | None,
        variables: Mapping[str, Any],
        *,
        continues: bool,
    ) -> tuple[str, str]:
        """Render by Python of mlx-lm or transformers; it did not come with the model, and ends."""
        options = {**variables, "add_generation_prompt": not continues}
        if tools is not None:
            options["tools"] = tools
        if continues:
            options["continue_final_message"] = True

        def render(replaced: Mapping[int, Message]) -> str:
            given = [dict(replaced.get(index, message)) for index, message in enumerate(messages)]
            return str(self._tokenizer.apply_chat_template(given, tokenize=False, **options))

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


def _marked(prompt: ChatPrompt, messages: Sequence[Message], traits: TemplateTraits) -> dict[int, Message]:
    """Return what a rendering with marks has in place of some of *messages*, which are the prompt's as arranged.

    Besides what is marked of these, instructions that stand in a question end before it: conversations share them.
    """
    parted = list(prompt.messages)
    first = next((index for index, message in enumerate(parted) if message.get("role") != "system"), 0)
    if first > 0 and not traits.takes_system:
        parted[first] = mark_start(parted[first])
    whole = arranged(parted, traits)
    marks = marked_messages(whole, continues=prompt.continues)
    replaced = {index: marks.get(index, message) for index, message in enumerate(whole)}
    return {index: message for index, message in replaced.items() if message != messages[index]}


def has_own_renderer(tokenizer: Any) -> bool:
    """Whether Python of mlx-lm or transformers renders the messages, and no template that came with the model."""
    from transformers import PreTrainedTokenizerBase  # a second; a tokenizer has imported it

    inner = tokenizer._tokenizer  # noqa: SLF001 mlx-lm's wrapper says it nowhere else
    is_inherited = type(inner).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    return tokenizer._chat_template is not None or not is_inherited  # noqa: SLF001
