"""What stands between a client's protocol and an upstream's, and the case in which they are one."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from mlxd.cloud.splice import add_member, rename_model, replace_model, set_member
from mlxd.cloud.sse import Event


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


class Passthrough:
    """Both speak the same protocol: bytes pass as they are, but for the model's names and the question for usage."""

    def __init__(self, endpoint: str) -> None:
        """Take the path."""
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
