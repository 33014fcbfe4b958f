"""aiohttp's side of one connection: what its parser refuses is answered as everything else is, in the envelope."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, LineTooLong

from mlxd.http import errors
from mlxd.http.door import caller_of
from mlxd.protocol.errors import MalformedRequest, MlxdError

_SHOWN_CHARACTERS = 100
_TOO_MANY = "Too many headers"


class Connection(web.RequestHandler):
    """Reads requests, has them answered, and answers itself what is none."""

    __slots__ = ()

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
        caller = caller_of(request)
        begun = b"" if caller is None else caller.begun
        path = begun.partition(b" ")[2].decode("latin-1")  # and what comes after it
        return LastAnswer(_refusal(exc, has_line=b"\n" in begun), errors.dialect_of_path(path))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; what aiohttp has refused before the boundary has to be put into words."""
        if isinstance(resp, web.HTTPException):
            expected = request.headers.get("Expect", "")[:_SHOWN_CHARACTERS]
            error = MalformedRequest(f"nobody here can meet the Expect of {expected!r}", data={"status": resp.status})
            resp = LastAnswer(error, errors.dialect_of(request))
        return await super().finish_response(request, resp, start_time)


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
