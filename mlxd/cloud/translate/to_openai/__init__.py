"""Between a client that speaks Anthropic's messages and an upstream that speaks OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.cloud.protocol.base import parse, word
from mlxd.cloud.sse import Event
from mlxd.cloud.translate.reading import Reading, encoded_answer, encoded_request
from mlxd.cloud.translate.to_openai.answer import message_of
from mlxd.cloud.translate.to_openai.event import Events
from mlxd.cloud.translate.to_openai.request import chat_body


class ToOpenAI:
    """See `base.Translation`."""

    endpoint = "chat/completions"

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._reading = Reading("OpenAI")
        self._asked = ""  # the model as the client calls it
        self._events = Events()

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the request lost."""
        return self._reading.left_out

    def request(self, raw: bytes, body: Mapping[str, Any], model: str) -> bytes:  # noqa: ARG002
        """Return the body of /v1/chat/completions."""
        self._asked = word(body, "model")
        self._events = Events(self._asked)
        return encoded_request(chat_body(body, model, self._reading))

    def answer(self, body: bytes) -> bytes:
        """Return a message."""
        return encoded_answer(message_of(parse(body) or {}, self._asked))

    def event(self, event: Event, parsed: Mapping[str, Any] | None) -> bytes:
        """Return the events that a chunk is, and at `[DONE]` those of the end."""
        if parsed is not None:
            return self._events.take(parsed)
        return self._events.end() if event.data == b"[DONE]" else b""

    def end(self) -> bytes:
        """Nothing is added: `[DONE]` has ended it."""
        return b""
