"""One TCP connection: how many there may be, how long a request's headers may take, and what is no request at all.

aiohttp waits for a request forever, and for one that reads nothing. A request that has begun is bounded by others: its
body by `http.body_timeout`, its answer by what it asks for. What aiohttp's parser refuses is answered as everything
else is, in the envelope.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from enum import Enum
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, LineTooLong

from mlxd.clock import Clock, Timer
from mlxd.http import errors
from mlxd.protocol.errors import MalformedRequest, MlxdError, RequestTimedOut, TooManyConnections
from mlxd.protocol.settings import HttpSettings

_log = logging.getLogger(__name__)

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
# How long the rest of a body is read that was refused, so that its client sees the answer before the end.
_LINGER_S = 1.0
_SHOWN_CHARACTERS = 100
_TOO_MANY = "Too many headers"


class Connections:
    """All connections of a server; calling it makes the protocol of a new one."""

    def __init__(self, server: web.Server, settings: Callable[[], HttpSettings], clock: Clock) -> None:
        """Take what answers requests, and the limits in force."""
        self.server = server
        self.settings = settings
        self.clock = clock
        self.open = 0

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)


class _Stage(Enum):
    """What a connection is at."""

    TURNED_AWAY = "turned_away"
    IDLE = "idle"  # nothing of the next request has come
    HEADERS = "headers"  # something has
    REQUEST = "request"
    ANSWER = "answer"  # its head is out


class Connection(web.RequestHandler):
    """One connection: aiohttp's protocol, with our limits and our words."""

    def __init__(self, connections: Connections) -> None:
        """Be one of *connections*."""
        # All that is called of a logger is there.
        options: dict[str, Any] = {"access_log": None, "logger": ConnectionLog(_log)}
        super().__init__(connections.server, loop=asyncio.get_running_loop(), lingering_time=_LINGER_S, **options)
        self._connections = connections
        self._stage = _Stage.TURNED_AWAY
        self._timer: Timer | None = None  # of the stage: what is done when it lasts too long
        self._stall: Timer | None = None  # runs while the client takes nothing of what is sent to it
        self._request: web.Request | None = None
        self._is_half_closed = False  # the client sends no more, and may or may not wait for an answer
        self._begun = b""  # the first bytes of the request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or say that there are too many."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (for the type checker)
        self._wire = transport
        settings = self._connections.settings()
        self._connections.open += 1
        if self._connections.open > settings.max_connections:
            words = f"{settings.max_connections} connections are open already"
            self._end(TooManyConnections(words, hint="mlxctl config set http.max_connections=N", retry_after_s=1))
            return
        super().connection_made(transport)
        self._stage = _Stage.IDLE
        self._after(settings.header_timeout, self._on_late)

    def data_received(self, data: bytes) -> None:
        """Read it; the first of a request starts its clock."""
        if self._stage is _Stage.TURNED_AWAY:
            return
        if self._stage is _Stage.IDLE and data:  # aiohttp itself says that there may be more with none
            self._stage, self._begun = _Stage.HEADERS, b""
            self._after(self._connections.settings().header_timeout, self._on_late)
        if self._stage is _Stage.HEADERS and len(self._begun) < _BEGUN_BYTES:
            self._begun += data[: _BEGUN_BYTES - len(self._begun)]
        super().data_received(data)

    def begin_request(self, request: web.Request) -> None:
        """Note that the headers are here."""
        self._stage, self._request = _Stage.REQUEST, request
        self._stop()
        if self._is_half_closed and not self._may_wait():
            self._wire.close()

    def begin_answer(self) -> None:
        """Note that the answer begins: a client that closes from now on is gone."""
        if self._stage is _Stage.REQUEST:
            self._stage = _Stage.ANSWER
            self._stop()

    def end_request(self) -> None:
        """Note that the request is answered."""
        self._request = None
        self._stop()
        if self._stage in (_Stage.REQUEST, _Stage.ANSWER) and not self._wire.is_closing():
            self._stage = _Stage.IDLE
            self._after(_ANSWER_S if self._is_half_closed else _IDLE_S, self._on_late)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp leaves out what a protocol may return
        """Return whether the client may wait for an answer; the connection is closed if it cannot."""
        self._is_half_closed = True
        if self._stage is _Stage.HEADERS:
            self._after(_ASK_S, self._on_late)  # what has come is a request that begins now, or never will be one
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
        self._wire.write(_INTERIM)
        self._stop()
        # In the time of the network, which no other clock moves.
        self._timer = self._loop.call_later(0, self._look, iter((_ANSWER_S, _ASK_S)))

    def _look(self, pauses_s: Iterator[float]) -> None:
        """Close the connection when the client's side has answered that nobody is there; else ask again."""
        connected: socket.socket = self._wire.get_extra_info("socket")
        if connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._wire.abort()
        elif (pause_s := next(pauses_s, None)) is None:
            self._ask()
        else:
            self._timer = self._loop.call_later(pause_s, self._look, pauses_s)

    def pause_writing(self) -> None:
        """Wait with more; a client that takes nothing for long is cut off, so that it holds nothing forever."""
        self._stall = self._connections.clock.call_later(STALLED_S, self._wire.abort)
        super().pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        if self._stall is not None:
            self._stall.cancel()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Make room for another."""
        self._connections.open -= 1
        self._stop()
        if self._stall is not None:
            self._stall.cancel()
        if self._stage is not _Stage.TURNED_AWAY:
            super().connection_lost(exc)

    def _end(self, error: MlxdError) -> None:
        """Close the connection with an error in place of a request."""
        self._wire.write(errors.render_raw(error))
        self._wire.close()

    def _after(self, delay_s: float, then: Callable[[], None]) -> None:
        """Do something later, in place of what was to be done."""
        self._stop()
        self._timer = self._connections.clock.call_later(delay_s, then)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _on_late(self) -> None:
        if self._stage is _Stage.HEADERS and not self._is_half_closed:
            limit_s = self._connections.settings().header_timeout
            self._end(RequestTimedOut(f"the headers took longer than {limit_s:g} s to come"))
        else:
            self._wire.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to what could not be parsed, or whose answer failed beside the boundary."""
        if not isinstance(exc, HttpProcessingError):
            super().handle_error(request, status, exc, message)  # which logs it
            return LastAnswer(errors.internal_error(), errors.dialect_of(request))
        self.logger.info("a connection was refused, it sent no valid HTTP: %s", type(exc).__name__)
        path = self._begun.partition(b" ")[2].decode("latin-1")  # and what comes after it
        return LastAnswer(_refusal(exc, has_line=b"\n" in self._begun), errors.dialect_of_path(path))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; what aiohttp has refused before the boundary has to be put into words."""
        if isinstance(resp, web.HTTPException):
            expected = request.headers.get("Expect", "")[:_SHOWN_CHARACTERS]
            error = MalformedRequest(f"nobody here can meet the Expect of {expected!r}", data={"status": resp.status})
            resp = LastAnswer(error, errors.dialect_of(request))
        return await super().finish_response(request, resp, start_time)


def connection_of(request: web.BaseRequest) -> Connection | None:
    """Return the connection that *request* came on, if it is still there."""
    return request.protocol if request.transport is not None and isinstance(request.protocol, Connection) else None


class LastAnswer(web.StreamResponse):
    """The last answer on a connection. It is written whole: what was no request has no version to answer in."""

    def __init__(self, error: MlxdError, dialect: errors.Dialect) -> None:
        """Take what it says, and in whose envelope."""
        super().__init__(status=errors.status_of(error))
        self.force_close()
        self._raw = errors.render_raw(error, dialect)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write it."""
        if request.transport is not None:
            request.transport.write(self._raw)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Have nothing more to say."""


def _refusal(exc: HttpProcessingError, *, has_line: bool) -> MalformedRequest:
    """Return what to tell the client; *has_line* says whether its first line was short enough to be looked at."""
    words, status = "the request is no valid HTTP", HTTPStatus.BAD_REQUEST
    reason = exc.message.partition("\n")[0].strip().rstrip(":")[:_SHOWN_CHARACTERS]
    if isinstance(exc, LineTooLong):
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if has_line else HTTPStatus.REQUEST_URI_TOO_LONG
        words, reason = "a line of the request is too long", f"at most {exc.args[1]} bytes are read"
    elif isinstance(exc, ContentEncodingError):
        words, status = "the Content-Encoding can be gzip or deflate", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    elif reason.startswith(_TOO_MANY):
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    return MalformedRequest(f"{words}: {reason}", data={"status": status.value})


class ConnectionLog(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp has to say of connections, in a line where nothing is wrong with us.

    That is a client whose body cannot be read to its end (without a piece of what came), and one that has gone away
    just before the next piece of its stream.
    """

    def exception(self, msg: object, *args: object, exc_info: Any = True, **kwargs: Any) -> None:
        """Log an exception, or a caller's mistake."""
        if isinstance(exc_info, HttpProcessingError | web.RequestPayloadError):
            self.info("a connection was closed, its body is not what its headers say: %s", type(exc_info).__name__)
        elif isinstance(exc_info, ConnectionError):
            self.debug("a client went away: %s", type(exc_info).__name__)
        else:
            super().exception(msg, *args, exc_info=exc_info, **kwargs)
