"""GET /metrics, for Prometheus, and /status: what the daemon does, to be read and never to be changed."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

import mlxd
from mlxd.http.context import CONTEXT, EXCHANGE

# A queue may be long, and nobody reads all of it.
_MOST_WAITS = 500


async def get_metrics(request: web.Request) -> web.Response:
    """Return all series."""
    body = request.app[CONTEXT].metrics.render()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def get_status(request: web.Request) -> web.Response:
    """Return memory, models, queue and running requests; a client with an API key sees the models of its key."""
    context, key = request.app[CONTEXT], request[EXCHANGE].api_key
    pool = dataclasses.asdict(context.pool.status())

    def is_shown(model: str) -> bool:
        return key is None or key.permits(model)

    for name, field in (("models", "id"), ("preload", "id"), ("queue", "model")):
        pool[name] = [item for item in pool[name] if is_shown(item[field])]
    running = [
        {"id": one.id, "model": one.model, "route": one.route, "endpoint": one.endpoint, "state": one.state.value}
        for one in context.requests.list()
        if is_shown(one.model)
    ]
    document: dict[str, Any] = {
        "version": mlxd.__version__,
        "ready": context.pool.ready,
        "pool": {**pool, "queue": pool["queue"][:_MOST_WAITS], "waiting": len(pool["queue"])},
        "requests": running,
        "cloud": {"enabled": context.store.current.cloud.enabled},
    }
    # On a thread: a thousand models take a while, and streams run on this loop.
    body = await asyncio.to_thread(orjson.dumps, document)
    return web.Response(body=body, content_type="application/json")
