"""GET /metrics, for Prometheus, and /status: what the daemon does, to be read and never to be changed."""

from __future__ import annotations

import asyncio
import dataclasses

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

import mlxd
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE

# A queue may be long, and nobody reads all of it.
_MOST_WAITS = 500


async def get_metrics(request: web.Request) -> web.Response:
    """Return all series."""
    body = request.app[CONTEXT].metrics.render()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def get_status(request: web.Request) -> web.Response:
    """Return memory, models, queue and running requests; a client with an API key sees the models of its key."""
    context, key = request.app[CONTEXT], request[EXCHANGE].api_key
    status = context.pool.status()

    def is_shown(model: str) -> bool:
        return key is None or key.permits(model)

    queue = tuple(wait for wait in status.queue if is_shown(wait.model))
    pool = dataclasses.replace(
        status,
        models=tuple(model for model in status.models if is_shown(model.id)),
        preload=tuple(preload for preload in status.preload if is_shown(preload.id)),
        queue=queue[:_MOST_WAITS],
    )
    running = [
        {"id": one.id, "model": one.model, "route": one.route, "endpoint": one.endpoint, "state": one.state.value}
        for one in context.requests.list()
        if is_shown(one.model)
    ]
    ready, is_cloud_enabled = context.pool.ready, context.store.current.cloud.enabled

    def render() -> bytes:
        document = {
            "version": mlxd.__version__,
            "ready": ready,
            "pool": {**dataclasses.asdict(pool), "waiting": len(queue)},
            "requests": running,
            "cloud": {"enabled": is_cloud_enabled},
        }
        return orjson.dumps(document)

    # On a thread: a thousand models take a while, and streams run on this loop.
    return web.Response(body=await asyncio.to_thread(render), content_type="application/json")
