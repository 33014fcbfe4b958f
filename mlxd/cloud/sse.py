"""Cutting an upstream's bytes into whole server-sent events. Pure: bytes in, events out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlxd.protocol.errors import UpstreamError

# One event of more than this is no answer to a chat.
_MAX_EVENT_BYTES = 16 << 20
_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its bytes as they came, its name, and its data; comments have neither name nor data."""

    raw: bytes
    name: str
    data: bytes


# How streams of OpenAI's protocol end.
LAST = Event(b"data: [DONE]\n\n", "", b"[DONE]")


class EventCutter:
    """Passes on whole events only, so that a break leaves no half event with the client."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that *chunk* makes whole, byte for byte.

        Raises:
            UpstreamError: an event without end.
        """
        # What is left holds no whole end, which is of at most 4 bytes: a new one begins in its last 3 or in the chunk.
        seen = max(0, len(self._rest) - 3)
        self._rest += chunk
        events = []
        start = 0
        for end in _END.finditer(self._rest, seen):
            events.append(_event(self._rest[start : end.end()]))
            start = end.end()
        self._rest = self._rest[start:]
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise UpstreamError("the upstream sent an event that does not end")
        return events

    def close(self) -> list[Event]:
        """Return what the end of the bytes makes whole: a `[DONE]` that lacks its empty line."""
        last, self._rest = self._rest.strip(), b""
        if last.removeprefix(b"data:").strip() != b"[DONE]":
            return []
        return [LAST]


def _event(raw: bytes) -> Event:
    name, data = "", []
    for line in raw.splitlines():
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value.decode(errors="replace")
        elif field == b"data":
            data.append(value)
    return Event(raw, name, b"\n".join(data))
