"""Connections before there is a request: how many there may be, and how long a request's headers may take to come.

Stands between the transport and aiohttp, which waits for a request for ever. A request that has begun is bounded by
others: its body by `http.body_timeout`, its answer by what it asks for.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from enum import Enum

from aiohttp import HttpVersion11, hdrs, web

from mlxd.clock import Clock, Timer
from mlxd.http import errors
from mlxd.protocol.errors import MlxdError, RequestTimedOut, TooManyConnections
from mlxd.protocol.settings import HttpSettings

# Of a connection that has been used and is kept for the next request; longer than clients keep theirs.
_IDLE_S = 600.0

# Of what a request begins with, to tell what it was to be when it cannot be parsed; longer lines are too long.
_BEGUN_BYTES = 4096
# How often a client is asked whether it is still there that has said that it will send no more.
_ASK_S = 1.0
_ANSWER_S = 0.02
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"

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
    ANSWER = "answer"  # its head is out


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, door: Door) -> None:
        """Take the door that it comes through."""
        self._door = door
        self._stage = _Stage.TURNED_AWAY
        self._timer: Timer | None = None
        self._stall: Timer | None = None  # runs while the client takes nothing of what is sent to it
        self._request: web.Request | None = None
        self._is_half_closed = False  # the client sends no more, and may or may not wait for an answer
        self._asking: asyncio.TimerHandle | None = None
        self.begun = b""  # the first bytes of the request

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
            self._stage, self.begun = _Stage.HEADERS, b""
            self._start_timer(self._door.settings().header_timeout)
        if self._stage is _Stage.HEADERS and len(self.begun) < _BEGUN_BYTES:
            self.begun += data[: _BEGUN_BYTES - len(self.begun)]
        assert isinstance(self._inner, asyncio.Protocol)  # noqa: S101  (for the type checker)
        self._inner.data_received(data)

    def begin_request(self, request: web.Request) -> None:
        """Note that the headers are here."""
        if self._stage is not _Stage.TURNED_AWAY:
            self._stage, self._request = _Stage.REQUEST, request
            self._stop_timer()
            if self._is_half_closed and not self._may_wait():
                self._transport.close()

    def begin_answer(self) -> None:
        """Note that the answer begins: a client that closes from now on is gone."""
        if self._stage is _Stage.REQUEST:
            self._stage = _Stage.ANSWER
            self._stop_asking()

    def end_request(self) -> None:
        """Note that the request is answered."""
        self._request = None
        self._stop_asking()
        if self._stage in (_Stage.REQUEST, _Stage.ANSWER) and not self._transport.is_closing():
            self._stage = _Stage.IDLE
            self._start_timer(_ANSWER_S if self._is_half_closed else _IDLE_S)

    def eof_received(self) -> bool:
        """Return whether the client may wait for an answer; the connection is closed if it cannot."""
        self._is_half_closed = True
        if self._stage is _Stage.HEADERS:
            self._start_timer(_ASK_S)  # what has come is a whole request, which begins now, or never will be one
            return True
        return self._stage is _Stage.REQUEST and self._may_wait()

    def _may_wait(self) -> bool:
        """Tell whether the client can have an answer, and begin to ask whether it is still there.

        One that has gone looks the same as one that has shut down its side: only what is sent shows the difference. An
        interim answer changes nothing for those that stay, but HTTP/1.0 has none, and a model's answer takes long.
        """
        request = self._request
        if request is None or not (request.content.is_eof() or request.content.exception() is not None):
            return False  # more of its body was to come
        if request.version >= HttpVersion11:
            self._ask()
            return True
        return request.method != hdrs.METH_POST

    def _ask(self) -> None:
        self._transport.write(_INTERIM)
        loop = asyncio.get_running_loop()
        self._asking = loop.call_later(0, self._look, iter((_ANSWER_S, _ASK_S)))

    def _look(self, pauses_s: Iterator[float]) -> None:
        """Close the connection when the client's side has answered that nobody is there; else ask again."""
        connected: socket.socket = self._transport.get_extra_info("socket")
        if connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._transport.abort()
        elif (pause_s := next(pauses_s, None)) is None:
            self._ask()
        else:
            self._asking = asyncio.get_running_loop().call_later(pause_s, self._look, pauses_s)

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

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
        self._stop_asking()
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
        if self._stage is _Stage.HEADERS and not self._is_half_closed:
            limit_s = self._door.settings().header_timeout
            self._transport.write(
                errors.render_raw(RequestTimedOut(f"the headers took longer than {limit_s:g} s to come"))
            )
        self._transport.close()


def caller_of(request: web.BaseRequest) -> Caller | None:
    """Return the connection that *request* came on, if it is still there."""
    protocol = None if request.transport is None else request.transport.get_protocol()
    return protocol if isinstance(protocol, Caller) else None
