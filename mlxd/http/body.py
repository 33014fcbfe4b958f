"""Reading a request's body: content type, size and JSON, checked before anything else happens."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import orjson
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from mlxd.http import json_parts, json_size
from mlxd.http.context import CONTEXT
from mlxd.http.intake import SMALL_BYTES, Intake, Place
from mlxd.http.json_size import JsonSize
from mlxd.protocol.errors import InvalidRequest, PayloadTooLarge, RequestTimedOut, UnsupportedMediaType
from mlxd.protocol.settings import HttpSettings
from mlxd.protocol.units import format_bytes


async def read_object(request: web.Request, place: Place) -> tuple[bytearray, dict[str, Any]]:
    """Return the body as it came and the JSON object in it.

    Args:
        request: whose body it is.
        place: what the body may take of the memory for bodies; kept as long as something of the body is.

    Raises:
        UnsupportedMediaType: it is not `application/json`; a web page's simple POST stops here.
        RequestTimedOut: it took longer to come than `http.body_timeout`.
        TooManyBodies: there was no room for it for as long.
        PayloadTooLarge: over `http.max_body`, also when only the decompressed body is, or it holds too much.
        InvalidRequest: no JSON object.
    """
    if request.content_type != "application/json":
        got = request.headers.get("Content-Type", "nothing")
        raise UnsupportedMediaType(f"the Content-Type must be application/json, not {got[:80]}")
    context = request.app[CONTEXT]
    raw = await _read(request, place, context.store.current.http)
    body = await _parse(raw, context.intake, context.store.current.http.max_messages)
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return raw, body


async def _read(request: web.Request, place: Place, settings: HttpSettings) -> bytearray:
    most_bytes = settings.max_body
    declared = None if hdrs.CONTENT_ENCODING in request.headers else request.content_length
    if declared is not None and declared > most_bytes:
        raise _too_large(most_bytes)
    raw = bytearray()
    if not await _receive(request, raw, min(SMALL_BYTES, most_bytes), settings.body_timeout):
        if len(raw) > most_bytes:
            raise _too_large(most_bytes)
        await place.claim(most_bytes if declared is None else declared, settings.body_timeout)
        if not await _receive(request, raw, most_bytes, settings.body_timeout):
            raise _too_large(most_bytes)
        place.resize(len(raw))
    return raw


def _too_large(most_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is over the limit of {format_bytes(most_bytes)}", hint="mlxctl config set http.max_body=SIZE"
    )


async def _receive(request: web.Request, raw: bytearray, most_bytes: int, limit_s: float) -> bool:
    """Add what comes to *raw*; return whether that was all. It is not where there are more than *most_bytes*."""
    try:
        async with asyncio.timeout(limit_s):
            while chunk := await request.content.readany():
                raw += chunk
                if len(raw) > most_bytes:
                    return False
    except TimeoutError:
        raise RequestTimedOut(f"the body took longer than {limit_s:g} s to come") from None
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise InvalidRequest(f"the body could not be read: {error}") from error
    return True


async def _parse(raw: bytearray, intake: Intake, max_messages: int) -> Any:
    """Return what the JSON says; a large one is measured first, and parsed when it is its turn.

    A thread would not help: the parser holds the interpreter's lock.
    """
    try:
        if len(raw) <= SMALL_BYTES:
            return orjson.loads(raw)
        return await intake.run(_steps(raw, json_size.limit_of(max_messages)))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None


def _steps(raw: bytearray, limit: JsonSize) -> Generator[None, None, Any]:
    long_strings: list[tuple[int, int]] = []
    for size in json_size.measure(raw, long_strings):
        json_size.check(size, limit)
        yield
    return (yield from json_parts.parse(raw, long_strings))
