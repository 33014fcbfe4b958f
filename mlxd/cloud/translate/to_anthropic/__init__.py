"""Between a client that speaks OpenAI's chat completions and an upstream that speaks Anthropic's messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.cloud.protocol.base import parse, word
from mlxd.cloud.sse import Event
from mlxd.cloud.translate.reading import Reading, encoded_answer, encoded_request
from mlxd.cloud.translate.to_anthropic.answer import completion
from mlxd.cloud.translate.to_anthropic.chunk import Chunks
from mlxd.cloud.translate.to_anthropic.request import messages_body, wants_usage


class ToAnthropic:
    """See `base.Translation`."""

    endpoint = "messages"

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """*now* is for `created`, which Anthropic's answers lack."""
        self._now = now
        self._reading = Reading("Anthropic")
        self._chunks: Chunks | None = None
        self._wants_usage = False
        self._asked = ""  # the model as the client calls it

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the request lost."""
        return self._reading.left_out

    def request(self, raw: bytes, body: Mapping[str, Any], model: str) -> bytes:  # noqa: ARG002
        """Return the body of /v1/messages."""
        translated = messages_body(body, model, self._reading)
        self._wants_usage = wants_usage(body)
        self._asked = word(body, "model")
        return encoded_request(translated)

    def answer(self, body: bytes) -> bytes:
        """Return a `chat.completion`."""
        return encoded_answer(completion(parse(body) or {}, int(self._now()), self._asked))

    def event(self, event: Event, parsed: Mapping[str, Any] | None) -> bytes:  # noqa: ARG002
        """Return the chunks that an event is."""
        if parsed is None:  # a comment
            return b""
        if self._chunks is None:
            self._chunks = Chunks(int(self._now()), self._asked, include_usage=self._wants_usage)
        return self._chunks.take(parsed)

    def end(self) -> bytes:
        """Nothing is added: `message_stop` has ended it."""
        return b""
