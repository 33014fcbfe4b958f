"""An upstream's answer, passed on to the client: whole, or event for event, in the client's protocol."""

from __future__ import annotations

from aiohttp import web

from mlxd.cloud.errand import Errand
from mlxd.cloud.protocol import PROTOCOLS
from mlxd.cloud.protocol.base import parse
from mlxd.cloud.router import Decision
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE
from mlxd.http.stream import EventStream
from mlxd.protocol.errors import CloudError, InvalidRequest, MlxdError, UnsupportedParameter, UpstreamError
from mlxd.protocol.settings import CloudSettings

# Rules of several daemons may send a name in a circle.
_MAX_HOPS = 3
_LOOP_DETECTED = 508


async def relay(
    request: web.Request,
    decision: Decision,
    errand: Errand,
    cloud: CloudSettings,
    stream: EventStream,
    cause: MlxdError | None,
) -> web.StreamResponse:
    """Ask the targets of the decision; a client that leaves early closes the connection there.

    Args:
        request: of the client.
        decision: with at least one target.
        errand: what to ask.
        cloud: the settings when the request came.
        stream: where a stream is written; its status may be out already, when comments have kept it alive.
        cause: the local failure that led here.

    Raises:
        MlxdError: before the first byte; afterwards the error is the stream's last event.
    """
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    first = decision.routes[0]
    if errand.hops > _MAX_HOPS:
        message = f"the request has passed {errand.hops - 1} mlxd already; rule {first.rule_id!r} is part of a circle"
        raise UpstreamError(message, hint="mlxctl cloud rule list", data={"status": _LOOP_DETECTED})
    exchange.note_cloud(first, None if cause is None else cause.code)
    tracked = context.requests.track(exchange.request_id, endpoint=request.path, model=first.model, route="cloud")
    try:
        with tracked as running:
            async with context.upstreams.ask(decision.routes, errand, cloud, exchange.attempts) as answer:
                exchange.note_answer(answer)
                running.begin_answering()
                if answer.body is not None:
                    if not stream.is_open:
                        return web.Response(body=answer.body, status=answer.status, content_type="application/json")
                    # Comments have kept the client alive: its status is sent, and this is a refusal.
                    words = PROTOCOLS[errand.protocol].error_of(parse(answer.body)) or "without a word"
                    raise InvalidRequest(f"{answer.route.target} refused with status {answer.status}: {words}")
                if stream.is_open:
                    await stream.comment(f"x-mlxd-route: cloud, x-mlxd-target: {answer.route.target}")
                async for chunk in answer.chunks():
                    if chunk:
                        await stream.send(chunk)
        return stream.response
    except (CloudError, UnsupportedParameter) as error:
        if cause is None or stream.has_content:
            raise
        # What the machine could not do is what the client can fix.
        cause.data["attempts"] = error.data.get("attempts", [])
        raise cause from error
