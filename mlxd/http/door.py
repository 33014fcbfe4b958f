"""Connections before there is a request: how many there may be, and how long a request's headers may take to come.

Stands between the transport and aiohttp, which waits for a request for ever. A request that has begun is bounded by
others: its body by `http.body_timeout`, its answer by what it asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from aiohttp import web

from mlxd.http import errors
from mlxd.pool.clock import Clock, Timer
from mlxd.protocol.errors import MlxdError, RequestTimedOut, TooManyConnections
from mlxd.protocol.settings import HttpSettings

# Of a connection that has been used and is kept for the next request; longer than clients keep theirs.
_IDLE_S = 600.0


# A client that takes nothing of an answer for this long is gone for good.
STALLED_S = 60.0


class Door:
    """All connections of a server."""

    def __init__(
        self, serve: Callable[[], asyncio.BaseProtocol], settings: Callable[[], HttpSettings], clock: Clock
    ) -> None:
        """Take what makes aiohttp's protocol of one connection, and the limits in force."""
        self.serve = serve
        self.settings = settings
        self.clock = clock
        self.connections = 0

    def __call__(self) -> Caller:
        """Return the protocol of a new connection."""
        return Caller(self)


class _Stage(Enum):
    """What a connection is at."""

    TURNED_AWAY = "turned_away"
    IDLE = "idle"  # nothing of the next request has come
    HEADERS = "headers"  # something has
    REQUEST = "request"


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, door: Door) -> None:
        """Take the door that it comes through."""
        self._door = door
        self._stage = _Stage.TURNED_AWAY
        self._timer: Timer | None = None
        self._stall: Timer | None = None  # runs while the client takes nothing of what is sent to it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or say that there are too many."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (for the type checker)
        self._transport = transport
        settings = self._door.settings()
        self._door.connections += 1
        if self._door.connections > settings.max_connections:
            self._turn_away(
                TooManyConnections(
                    f"{settings.max_connections} connections are open already",
                    hint="mlxctl config set http.max_connections=N",
                    retry_after_s=1,
                )
            )
            return
        self._inner = self._door.serve()
        self._inner.connection_made(transport)
        self._stage = _Stage.IDLE
        self._start_timer(settings.header_timeout)

    def data_received(self, data: bytes) -> None:
        """Pass it on; the first of a request starts its clock."""
        if self._stage is _Stage.TURNED_AWAY:
            return
        if self._stage is _Stage.IDLE:
            self._stage = _Stage.HEADERS
            self._start_timer(self._door.settings().header_timeout)
        assert isinstance(self._inner, asyncio.Protocol)  # noqa: S101  (for the type checker)
        self._inner.data_received(data)

    def begin_request(self) -> None:
        """Note that the headers are here."""
        if self._stage is not _Stage.TURNED_AWAY:
            self._stage = _Stage.REQUEST
            self._stop_timer()

    def end_request(self) -> None:
        """Note that the request is answered."""
        if self._stage is _Stage.REQUEST and not self._transport.is_closing():
            self._stage = _Stage.IDLE
            self._start_timer(_IDLE_S)

    def eof_received(self) -> bool | None:
        """Pass it on."""
        if self._stage is _Stage.TURNED_AWAY:
            return None
        assert isinstance(self._inner, asyncio.Protocol)  # noqa: S101  (for the type checker)
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Pass it on; a client that takes nothing for long is cut off, so that it holds nothing for ever."""
        self._stall = self._door.clock.call_later(STALLED_S, self._transport.abort)
        if self._stage is not _Stage.TURNED_AWAY:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._stop_stall()
        if self._stage is not _Stage.TURNED_AWAY:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another."""
        self._door.connections -= 1
        self._stop_timer()
        self._stop_stall()
        if self._stage is not _Stage.TURNED_AWAY:
            self._inner.connection_lost(exc)

    def _turn_away(self, error: MlxdError) -> None:
        self._transport.write(errors.render_raw(error))
        self._transport.close()

    def _start_timer(self, delay_s: float) -> None:
        self._stop_timer()
        self._timer = self._door.clock.call_later(delay_s, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._stage is _Stage.HEADERS:
            limit_s = self._door.settings().header_timeout
            self._transport.write(
                errors.render_raw(RequestTimedOut(f"the headers took longer than {limit_s:g} s to come"))
            )
        self._transport.close()


def caller_of(request: web.Request) -> Caller | None:
    """Return the connection that *request* came on, if it is still there."""
    protocol = None if request.transport is None else request.transport.get_protocol()
    return protocol if isinstance(protocol, Caller) else None
