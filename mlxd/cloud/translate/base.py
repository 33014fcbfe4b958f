"""Between a client's protocol and an upstream's: the bytes as they are where they are one, else by way of events."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from mlxd.cloud.protocol.base import parse
from mlxd.cloud.splice import add_member, rename_model, replace_model, set_member
from mlxd.cloud.sse import Event
from mlxd.cloud.translate.reading import Reading, encoded_request
from mlxd.engine.base import AnswerEvent
from mlxd.protocol.errors import UpstreamError
from mlxd.renderer import Renderer


class Translation(typing.Protocol):
    """One request's way there and back. Its stream methods are called for one stream, in order."""

    endpoint: str  # the path under the upstream's base address

    @property
    def left_out(self) -> tuple[str, ...]:
        """The paths of fields of the request that are not sent, to tell the client."""

    def request(self, raw: bytes, body: Mapping[str, Any], model: str) -> bytes:
        """Return what the upstream is sent.

        Args:
            raw: the client's body as it came.
            body: the same, parsed.
            model: the model's name at the upstream.

        Raises:
            InvalidRequest: the body is malformed.
            UnsupportedParameter: it says what the upstream's protocol cannot; nothing has been sent.
        """

    def answer(self, body: bytes) -> bytes:
        """Return a whole, successful answer in the client's protocol."""

    def event(self, event: Event, parsed: Mapping[str, Any] | None) -> bytes:
        """Return what an event of the upstream's stream is for the client; nothing where it is nothing.

        Raises:
            StreamInterrupted: it is an error, for whose words the client's protocol has a shape of its own.
        """

    def end(self) -> bytes:
        """Return what ends a stream that the upstream has ended."""


class Reader(typing.Protocol):
    """Reads one answer of an upstream as events of sequence 0: `Prefilling` first, `Finished` last."""

    id: str  # of the answer; known with the first event

    def whole(self, body: Mapping[str, Any]) -> list[AnswerEvent]:
        """Return the events of a whole answer.

        Raises:
            UpstreamError: it is none, or says what no client has a place for.
        """

    def take(self, event: Mapping[str, Any]) -> list[AnswerEvent]:
        """Return what an event of a stream, parsed, says.

        Raises:
            StreamInterrupted: it is an error, or cannot be told in order.
            UpstreamError: it says what no client has a place for.
        """

    def end(self) -> list[AnswerEvent]:
        """Return what is left when the stream has ended."""


Writer = Callable[[Mapping[str, Any], str, Reading], dict[str, Any]]


class Translated:
    """The protocols differ: the request is written anew, and events of the answer are rendered as those of our own."""

    def __init__(
        self, endpoint: str, reading: Reading, write: Writer, reader: Reader, renderer: Callable[[str], Renderer]
    ) -> None:
        self.endpoint = endpoint
        self._reading = reading
        self._write = write
        self._reader = reader
        self._make_renderer = renderer
        self._renderer: Renderer | None = None

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the request lost."""
        return self._reading.left_out

    def request(self, raw: bytes, body: Mapping[str, Any], model: str) -> bytes:  # noqa: ARG002
        """Return the body in the upstream's protocol."""
        return encoded_request(self._write(body, model, self._reading))

    def answer(self, body: bytes) -> bytes:
        """Return the answer in the client's protocol."""
        events = self._reader.whole(parse(body) or {})
        renderer = self._make_renderer(self._reader.id)
        try:
            for event in events:
                renderer.event(0, event)
            return renderer.whole()
        except orjson.JSONEncodeError as error:
            raise UpstreamError("the upstream's answer is nested too deep to be put into another protocol") from error

    def event(self, event: Event, parsed: Mapping[str, Any] | None) -> bytes:  # noqa: ARG002
        """Return what the client's protocol says of an event."""
        return b"" if parsed is None else self._render(self._reader.take(parsed))

    def end(self) -> bytes:
        """Return what ends a stream in the client's protocol."""
        return self._render(self._reader.end(), is_last=True)

    def _render(self, events: Sequence[AnswerEvent], *, is_last: bool = False) -> bytes:
        if self._renderer is None:
            self._renderer = self._make_renderer(self._reader.id)
        data = b"".join(self._renderer.event(0, event) for event in events)
        return data + self._renderer.end() if is_last else data


class Passthrough:
    """Both speak the same protocol: bytes pass as they are, but for the model's names and the question for usage."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._hides_usage = False
        self._asked: str | None = None  # the model as the client calls it; None: as the upstream does

    @property
    def left_out(self) -> tuple[str, ...]:
        """Nothing is left out."""
        return ()

    def request(self, raw: bytes, body: Mapping[str, Any], model: str) -> bytes:
        """Change the model; ask a stream of completions for its usage, which the log and the budget need."""
        raw = replace_model(raw, model)
        self._asked = None if body["model"] == model else body["model"]
        asks = body.get("stream") is True and self.endpoint in {"chat/completions", "completions"}
        options = body.get("stream_options")
        if asks and (options is None or (isinstance(options, dict) and not options.get("include_usage"))):
            self._hides_usage = True
            put = set_member if "stream_options" in body else add_member  # to look for it reads the whole body again
            raw = put(raw, "stream_options", {**(options or {}), "include_usage": True})
        return raw

    def answer(self, body: bytes) -> bytes:
        """Call the model as the client does: some take an answer of another model for none of theirs."""
        return body if self._asked is None else rename_model(body, self._asked)

    def event(self, event: Event, parsed: Mapping[str, Any] | None) -> bytes:
        """Call the model as the client does; usage that the client did not ask for is not told."""
        if self._hides_usage and parsed is not None and parsed.get("choices") == [] and parsed.get("usage"):
            return b""
        if self._asked is None or b'"model"' not in event.data:
            return event.raw
        # Data of several lines is not found in its event, and left as it is.
        return event.raw.replace(event.data, rename_model(event.data, self._asked), 1)

    def end(self) -> bytes:
        """Nothing is added."""
        return b""
