"""The outermost middleware: request id, top-level renderer of errors, headers of every answer, log line."""

from __future__ import annotations

import difflib
import logging
import re
import uuid

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.typedefs import Handler

import mlxd
from mlxd.http import errors
from mlxd.http.connection import LastAnswer, connection_of
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE, Exchange
from mlxd.http.guard import cors_headers
from mlxd.protocol.errors import MalformedRequest, MlxdError

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# nginx's status for a client that closed the connection; it is only ever logged.
_CLIENT_GONE = 499
# The parser reads 0.9 and 2.0 too, and an answer claims the version of its request.
_VERSIONS = frozenset({HttpVersion10, HttpVersion11})
_METHODS = frozenset({hdrs.METH_GET, hdrs.METH_POST, hdrs.METH_DELETE, hdrs.METH_OPTIONS, hdrs.METH_HEAD})


@web.middleware
async def boundary(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every request, whatever happens, in the envelope."""
    if request.version not in _VERSIONS:
        words = "HTTP/{}.{} is not served, only HTTP/1.1 and HTTP/1.0".format(*request.version)
        return LastAnswer(MalformedRequest(words, data={"status": 505}), errors.dialect_of(request))
    given = request.headers.get("x-request-id", "")
    context = request.app[CONTEXT]
    now = context.clock.now
    request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
    exchange = request[EXCHANGE] = Exchange(request_id, now, now(), round(context.now() * 1000))
    has_ended = False
    connection = connection_of(request)
    if connection is not None:
        connection.begin_request(request)
    status = _CLIENT_GONE
    try:
        response = await _answer(request, handler)
        if exchange.endpoint is not None and isinstance(response, web.Response):
            # To its last byte: a client that goes before it has not been answered. A stream is out already.
            await response.prepare(request)
            await response.write_eof()
        status, has_ended = response.status, True
    finally:
        if connection is not None:
            connection.end_request()
        context.metrics.note_request(
            method=request.method if request.method in _METHODS else "other",
            route=_pattern(request),
            status=status,
            duration_s=now() - exchange.started_s,
            first_token_s=exchange.first_token_s,
            attempts=exchange.attempts,
        )
        if exchange.endpoint is not None:
            context.on_ended(exchange.record(has_ended=has_ended))
        context.omission_log.tell(request.headers.get(hdrs.USER_AGENT), exchange.ignored)
        _log.info(
            "%s %s %d in %.3f s, %s%s%s",
            request.method,
            request.path,
            status,
            now() - exchange.started_s,
            exchange.request_id,
            exchange.way(),
            f", ignored fields {', '.join(exchange.ignored)}" if exchange.ignored else "",
        )
    return response


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        response = _render(errors.from_http(error, request, _nearest_route(request)), request)
        if hdrs.ALLOW in error.headers:
            response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        return response
    except MlxdError as error:
        return _render(error, request)
    except ConnectionError:
        raise  # the client is gone: aiohttp closes, there is nobody to answer
    except Exception:  # noqa: BLE001  (the top-level renderer)
        _log.exception("request %s failed", request[EXCHANGE].request_id)
        return _render(errors.internal_error(), request)


def _render(error: MlxdError, request: web.Request) -> web.Response:
    request[EXCHANGE].note_error(error)
    return errors.render(error, request)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Put onto every response, streams too, what `Exchange` and CORS have to say (an `on_response_prepare` signal)."""
    response.headers[hdrs.SERVER] = f"mlxd/{mlxd.__version__}"
    connection, exchange = connection_of(request), request.get(EXCHANGE)
    if connection is not None:
        connection.begin_answer()
    if exchange is not None:
        exchange.http_status = response.status
        response.headers.update(exchange.headers())
        response.headers.update(cors_headers(request))


def _pattern(request: web.Request) -> str:
    """Return the pattern of the route that took the request: paths are as many as clients think of."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def _nearest_route(request: web.Request) -> str | None:
    known = [resource.canonical for resource in request.app.router.resources()]
    near = difflib.get_close_matches(request.path, known, n=1)
    return near[0] if near else None
