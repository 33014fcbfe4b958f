"""The chat template of one model, and the rendering of messages by it. Runs on worker threads and touches no mlx."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.engine.base import ChatPrompt
from mlxd.engine.checkpoint import marked_messages
from mlxd.engine.process import Processes
from mlxd.protocol.errors import InvalidRequest

_log = logging.getLogger(__name__)


class ChatTemplate:
    """Renders the chats of one model."""

    def __init__(self, model_id: str, tokenizer: Any, processes: Processes) -> None:
        """Take mlx-lm's `TokenizerWrapper`, which has the template, and what renders it."""
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._processes = processes

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
        if has_own_renderer(self._tokenizer):
            return self._render_here(prompt, tools, variables)
        job: dict[str, Any] = {
            "template": self._text(tools),
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

    def _text(self, tools: list[Any] | None) -> str:
        try:
            return str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:  # several by name, and none is the default
            raise self._refused(error) from error

    def _render_here(
        self, prompt: ChatPrompt, tools: list[Any] | None, variables: Mapping[str, Any]
    ) -> tuple[str, str]:
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


def has_own_renderer(tokenizer: Any) -> bool:
    """Whether Python of mlx-lm or transformers renders the messages, and no template that came with the model."""
    from transformers import PreTrainedTokenizerBase  # a second; a tokenizer has imported it

    inner = tokenizer._tokenizer  # noqa: SLF001 mlx-lm's wrapper says it nowhere else
    is_inherited = type(inner).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    return tokenizer._chat_template is not None or not is_inherited  # noqa: SLF001
