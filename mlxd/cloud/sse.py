"""Cutting an upstream's bytes into whole server-sent events. Pure: bytes in, bytes out."""

from __future__ import annotations

from mlxd.protocol.errors import UpstreamError

# One event of more than this is no answer to a chat.
_MAX_EVENT_BYTES = 16 << 20
# Enough of an event's data to tell how a stream ended.
_KEPT_BYTES = 32


class EventCutter:
    """Passes on whole events only, so that a break leaves no half event with the client, and sees how it ended."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._rest = b""
        self._last_data = b""

    @property
    def has_data(self) -> bool:
        """Whether an event with data was passed on; comments are none."""
        return self._last_data != b""

    @property
    def is_complete(self) -> bool:
        """Whether the stream ended as the protocol wants: with `[DONE]`, or with an error of the upstream's own."""
        return self._last_data == b"[DONE]" or self._last_data.startswith(b'{"error"')

    def feed(self, chunk: bytes) -> bytes:
        """Return the whole events up to now, byte for byte.

        Raises:
            UpstreamError: an event without end.
        """
        self._rest += chunk
        end = _end_of_events(self._rest)
        if end == 0:
            if len(self._rest) > _MAX_EVENT_BYTES:
                raise UpstreamError("the upstream sent an event that does not end")
            return b""
        whole, self._rest = self._rest[:end], self._rest[end:]
        self._note(whole)
        return whole

    def close(self) -> bytes:
        """Return what the end of the bytes makes whole: a `[DONE]` that lacks its empty line."""
        last, self._rest = self._rest.strip(), b""
        if last.removeprefix(b"data:").strip() != b"[DONE]":
            return b""
        self._last_data = b"[DONE]"
        return b"data: [DONE]\n\n"

    def _note(self, events: bytes) -> None:
        start = events.rfind(b"\ndata:") + 1
        if start > 0 or events.startswith(b"data:"):
            start += len(b"data:")
            self._last_data = events[start : start + _KEPT_BYTES].split(b"\n")[0].strip()


def _end_of_events(data: bytes) -> int:
    """Return where the last whole event ends, 0 when there is none: lines may end with LF or CRLF."""
    ends = [found + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (found := data.rfind(mark)) >= 0]
    return max(ends, default=0)
