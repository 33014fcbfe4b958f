"""The one renderer of errors on TCP: the envelope of the dialect that the path belongs to, status and retry headers."""

from __future__ import annotations

import math
from enum import Enum
from http import HTTPStatus
from typing import Any

import orjson
from aiohttp import web

from mlxd.http.exchange import EXCHANGE
from mlxd.protocol.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    MlxdError,
    NotFound,
    PayloadTooLarge,
    RequestTimedOut,
    UpstreamError,
)

# SDKs ignore a Retry-After over 60 s and fall back to hammering.
_RETRY_AFTER_S = (1, 60)
_BUSY = frozenset({429, 503, 529})
_ANTHROPIC_PATH = "/v1/messages"
_RESPONSES_PATH = "/v1/responses"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# OpenAI has no status of that meaning but 503.
_OVERLOADED = 529


class Dialect(Enum):
    """Whose API a path belongs to."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


def dialect_of(request: web.BaseRequest) -> Dialect:
    """Return the dialect that answers to *request* are in."""
    return dialect_of_path(request.path)


def dialect_of_path(path: str) -> Dialect:
    """Return the dialect of the routes that begin like that."""
    return Dialect.ANTHROPIC if path.startswith(_ANTHROPIC_PATH) else Dialect.OPENAI


def envelope(error: MlxdError, dialect: Dialect = Dialect.OPENAI, request_id: str | None = None) -> bytes:
    """Return `{"error": {message, type, param, code}}` as JSON, or Anthropic's envelope with type and message."""
    if dialect is Dialect.ANTHROPIC:
        return orjson.dumps({"type": "error", "error": detail(error, dialect), "request_id": request_id})
    return orjson.dumps({"error": detail(error)})


def detail(error: MlxdError, dialect: Dialect = Dialect.OPENAI) -> dict[str, Any]:
    """Return what stands under `error` in the envelope."""
    message = _words(error, dialect)
    if error.hint is not None:
        message = f"{message}. Try: {'; or: '.join(error.ways)}"
    # What a client sent as a header or a path may be no UTF-8, and then no JSON.
    message = message.encode(errors="backslashreplace").decode()
    tried = {"attempts": error.data["attempts"]} if "attempts" in error.data else {}
    if dialect is Dialect.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(
            status_of(error), "invalid_request_error" if status_of(error) < 500 else "api_error"
        )
        return {"type": kind, "message": message, "code": error.code, **tried}
    return {"message": message, "type": _openai_type(error), "param": error.param, "code": error.code, **tried}


def _words(error: MlxdError, dialect: Dialect) -> str:
    """Return the message, in the words that clients of the dialect act upon where they know only these."""
    if dialect is Dialect.ANTHROPIC and isinstance(error, ContextLengthExceeded) and error.data:
        tokens, most = error.data["prompt_tokens"], error.data["context_tokens"]
        return f"prompt is too long: {tokens} tokens > {min(most, tokens - 1)} maximum"
    return error.message


def status_of(error: MlxdError) -> int:
    """Return the HTTP status; an upstream's error keeps its own, and one of the parser has several."""
    status: Any = error.data.get("status") if isinstance(error, UpstreamError | MalformedRequest) else None
    return status if isinstance(status, int) else error.http_status


def _openai_type(error: MlxdError) -> str:
    """Return OpenAI's word for a kind of error; an upstream's is what its status says."""
    status = status_of(error)
    if not isinstance(error, UpstreamError) or status >= 500:
        return error.openai_type
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def headers_of(error: MlxdError) -> dict[str, str]:
    """Return `Retry-After` and `x-should-retry`, where the error has something to say to them."""
    headers = {}
    low, high = _RETRY_AFTER_S
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(min(max(math.ceil(error.retry_after_s), low), high))
    elif status_of(error) in _BUSY:
        headers["Retry-After"] = str(low)
    if status_of(error) == web.HTTPUnauthorized.status_code and not isinstance(error, UpstreamError):
        headers["WWW-Authenticate"] = "Bearer"
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    return headers


def render(error: MlxdError, request: web.Request) -> web.Response:
    """Return the whole response for an error that happened before the first byte."""
    dialect, status = dialect_of(request), status_of(error)
    response = web.Response(
        body=envelope(error, dialect, request[EXCHANGE].request_id),
        status=503 if status == _OVERLOADED and dialect is Dialect.OPENAI else status,
        content_type="application/json",
        headers=headers_of(error),
    )
    if isinstance(error, PayloadTooLarge | RequestTimedOut):
        response.force_close()  # the rest of the body is not worth reading
    return response


def render_raw(error: MlxdError, dialect: Dialect = Dialect.OPENAI) -> bytes:
    """Return the whole response to a connection that has no request yet, and is closed after it."""
    body = envelope(error, dialect)
    status = HTTPStatus(status_of(error))
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **headers_of(error),
    }
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def internal_error() -> MlxdError:
    """Return what a client is told of an unexpected exception: nothing but that it happened."""
    return MlxdError("an internal error happened; the daemon's log has the details", hint="mlxctl status")


def from_http(error: web.HTTPException, request: web.Request, nearest: str | None) -> MlxdError:
    """Return our error for one that aiohttp raised: an unknown path, a wrong method."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{request.path} does not take {request.method}, only {allowed}")
    if error.status == web.HTTPNotFound.status_code:
        message = f"there is no route {request.method} {request.path}"
        return NotFound(message if nearest is None else f"{message}; the nearest is {nearest}")
    return InvalidRequest(f"the request was refused: {error.reason}")


def event(error: MlxdError, request: web.Request) -> bytes:
    """Return the error as the last event of a stream; no `[DONE]` follows it."""
    dialect = dialect_of(request)
    if request.path == _RESPONSES_PATH:  # its events have a type and a number; this one is the first
        body = detail(error)
        words = {name: body[name] for name in ("code", "message", "param")}
        first = {"type": "error", "sequence_number": 0, **words, "error": body}
        return b"event: error\ndata: " + orjson.dumps(first) + b"\n\n"
    name = b"event: error\n" if dialect is Dialect.ANTHROPIC else b""
    return name + b"data: " + envelope(error, dialect, request[EXCHANGE].request_id) + b"\n\n"
