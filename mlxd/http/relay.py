"""An upstream's answer, passed on to the client: whole, or event for event."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import hdrs, web

from mlxd.cloud.providers.openai import Reply
from mlxd.cloud.router import CloudRoute
from mlxd.http.context import CONTEXT, EXCHANGE
from mlxd.http.stream import EventStream
from mlxd.protocol.errors import UpstreamError
from mlxd.requests import RunningRequest

# Rules of several daemons may send a name in a circle.
_MAX_HOPS = 3
_LOOP_DETECTED = 508


@dataclass(frozen=True, slots=True)
class Errand:
    """What is to be asked of which upstream."""

    route: CloudRoute
    endpoint: str  # the path under the upstream's base address, such as `chat/completions`
    raw: bytes  # the body as it came
    wants_stream: bool


async def relay(request: web.Request, errand: Errand) -> web.StreamResponse:
    """Send the body to the route's upstream and its answer to the client; leaving early closes the connection there.

    Raises:
        CloudError: before the first byte; afterwards the error is the stream's last event.
    """
    if errand.wants_stream:
        return await _stream(request, errand)
    async with _asked(request, errand) as (reply, _):
        return _whole(reply, await reply.read())


async def _stream(request: web.Request, errand: Errand) -> web.StreamResponse:
    async with EventStream(request) as stream, _asked(request, errand) as (reply, running):
        if not reply.is_stream:
            body = await reply.read()
            if not stream.is_open:
                return _whole(reply, body)
            raise reply.as_error(body)  # comments have kept the client alive: its status is sent
        async for events in reply.events():
            running.begin_answering()
            await stream.send(events)
    return stream.response


@asynccontextmanager
async def _asked(request: web.Request, errand: Errand) -> AsyncIterator[tuple[Reply, RunningRequest]]:
    """Ask the upstream; the request is listed from before the wait until after the last byte."""
    context = request.app[CONTEXT]
    route = errand.route
    hops = ", ".join(request.headers.getall(hdrs.VIA, [])).count("mlxd")
    if hops >= _MAX_HOPS:
        message = f"the request has passed {hops} mlxd already; rule {route.rule_id!r} is part of a circle"
        raise UpstreamError(message, hint="mlxctl cloud rule list", data={"status": _LOOP_DETECTED})
    request_id = request[EXCHANGE].request_id
    with context.requests.track(request_id, endpoint=request.path, model=route.model, route="cloud") as running:
        async with context.provider.post(
            route, errand.endpoint, errand.raw, wants_stream=errand.wants_stream, hops=hops + 1
        ) as reply:
            yield reply, running


def _whole(reply: Reply, body: bytes) -> web.Response:
    return web.Response(body=body, status=reply.status, headers=reply.headers)
