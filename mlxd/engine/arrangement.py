"""Messages in an order that a chat template takes: none is left out, and what stays before stays as it was.

System messages at the front are one. A later one that the template refuses, or would drop or move, becomes text of the
user at its place: moved to the front it would change the beginning of every later prompt, and nothing of the prompt
cache could be used. What a turn of a conversation becomes depends on nothing that comes after it but a user's words.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxd.engine.template_traits import TemplateTraits

Message = Mapping[str, Any]
_log = logging.getLogger(__name__)


def arranged(messages: Sequence[Message], traits: TemplateTraits) -> tuple[Message, ...]:
    """Return the messages as the template takes them; the last one stays the last where it is an assistant's."""
    leading = 0
    while leading < len(messages) and messages[leading].get("role") == "system":
        leading += 1
    turns = _Turns(traits)
    if leading:
        first = messages[0] if leading == 1 else _system(messages[:leading])
        is_asked = traits.takes_system_alone or any(message.get("role") == "user" for message in messages)
        turns.add_system(first, is_taken=traits.takes_system and is_asked)
    for message in messages[leading:]:
        match message.get("role"):
            case "system":
                turns.add_system(message, is_taken=traits.takes_system and traits.takes_late_system)
            case "user":
                turns.add_user(message)
            case "assistant":
                turns.add_assistant(message)
            case _:  # a result: it stays next to its call
                turns.messages.append(message)
    turns.end_user()
    if len(turns.messages) != len(messages):
        _log.debug("%d messages were given to the template as %d", len(messages), len(turns.messages))
    return tuple(turns.messages)


class _Turns:
    """The messages so far."""

    def __init__(self, traits: TemplateTraits) -> None:
        self._traits = traits
        self._waiting: list[str] = []  # texts of system messages, for the user's turn that comes
        self.messages: list[Message] = []

    def add_system(self, message: Message, *, is_taken: bool) -> None:
        if is_taken:
            self.messages.append(message)
        else:
            self._waiting.append(_content(message))

    def add_user(self, message: Message) -> None:
        if self._waiting:
            message = _with(message, [*self._waiting, _content(message)])
            self._waiting = []
        last = self.messages[-1] if self.messages else {}
        is_repeated = last.get("role") == "user" and not self._traits.takes_users_in_a_row
        is_refused = last.get("role") == "tool" and not self._traits.takes_user_after_tool
        if is_repeated or is_refused:
            self.messages[-1] = _with(last, [_content(last), _content(message)])
        else:
            self.messages.append(message)

    def end_user(self) -> None:
        """Give what waits a message of the user, as none has come."""
        if self._waiting:
            self.add_user({"role": "user", "content": ""})

    def add_assistant(self, message: Message) -> None:
        self.end_user()
        last = self.messages[-1] if self.messages else {}
        is_repeated = last.get("role") == "assistant" and not self._traits.takes_users_in_a_row
        if is_repeated and not last.get("tool_calls"):
            self.messages[-1] = {**last, **_with(message, [_content(last), _content(message)])}
        else:
            self.messages.append(message)


def _system(messages: Iterable[Message]) -> Message:
    return {"role": "system", "content": _joined(_content(message) for message in messages)}


def _with(message: Message, texts: Iterable[str]) -> Message:
    return {**message, "content": _joined(texts)}


def _joined(texts: Iterable[str]) -> str:
    return "\n\n".join(text for text in texts if text)


def _content(message: Message) -> str:
    return message.get("content") or ""
