"""An upstream's answer, passed on to the client: whole, or event for event."""

from __future__ import annotations

from aiohttp import web

from mlxd.cloud.providers.openai import Reply
from mlxd.cloud.router import CloudRoute
from mlxd.openai.context import CONTEXT, EXCHANGE
from mlxd.openai.stream import EventStream
from mlxd.requests import RequestState, RunningRequest


async def relay(
    request: web.Request, route: CloudRoute, endpoint: str, raw: bytes, *, wants_stream: bool
) -> web.StreamResponse:
    """Send the body to the route's upstream and its answer to the client; leaving early closes the upstream connection.

    Raises:
        CloudError: before the first byte; afterwards the error is the stream's last event.
    """
    context = request.app[CONTEXT]
    async with EventStream(request) as stream:
        with context.requests.track(
            request[EXCHANGE].request_id, endpoint=request.path, model=route.model, route="cloud"
        ) as running:
            async with context.provider.post(route, endpoint, raw, wants_stream=wants_stream) as reply:
                if not reply.is_stream:
                    return await _whole(reply)
                await _events(reply, stream, running)
    return stream.response


async def _whole(reply: Reply) -> web.Response:
    return web.Response(body=await reply.read(), status=reply.status, headers=reply.headers)


async def _events(reply: Reply, stream: EventStream, running: RunningRequest) -> None:
    async for events in reply.events():
        running.state = RequestState.ANSWERING
        await stream.send(events)
