"""Reading a request's body: content type, size and JSON, checked before anything else happens."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from mlxd.http.context import CONTEXT
from mlxd.protocol.errors import InvalidRequest, PayloadTooLarge, RequestTimedOut, UnsupportedMediaType
from mlxd.protocol.units import format_bytes


async def read_object(request: web.Request) -> tuple[bytes, dict[str, Any]]:
    """Return the body as it came and the JSON object in it.

    Raises:
        UnsupportedMediaType: it is not `application/json`; a web page's simple POST stops here.
        RequestTimedOut: it took longer to come than `http.body_timeout`.
        PayloadTooLarge: over `http.max_body`, also when only the decompressed body is.
        InvalidRequest: no JSON object.
    """
    if request.content_type != "application/json":
        got = request.headers.get("Content-Type", "nothing")
        raise UnsupportedMediaType(f"the Content-Type must be application/json, not {got[:80]}")
    context = request.app[CONTEXT]
    limit_s = context.store.current.http.body_timeout
    try:
        async with asyncio.timeout(limit_s):
            raw = await _read(request, context.store.current.http.max_body)
    except TimeoutError:
        raise RequestTimedOut(f"the body took longer than {limit_s:g} s to come") from None
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return raw, body


async def _read(request: web.Request, limit_bytes: int) -> bytes:
    too_large = PayloadTooLarge(
        f"the body is over the limit of {format_bytes(limit_bytes)}", hint="mlxctl config set http.max_body=SIZE"
    )
    if request.content_length is not None and request.content_length > limit_bytes:
        raise too_large
    raw = bytearray()
    try:
        while chunk := await request.content.readany():
            raw += chunk
            if len(raw) > limit_bytes:
                raise too_large
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise InvalidRequest(f"the body could not be read: {error}") from error
    return bytes(raw)
