"""GET / (what this is), /health (it runs) and /ready (it can serve)."""

from __future__ import annotations

import orjson
from aiohttp import web

import mlxd
from mlxd.http.context import CONTEXT

# Probes have no key.
PROBES = frozenset({"/health", "/ready"})


async def get_root(request: web.Request) -> web.Response:  # noqa: ARG001  (all handlers take it)
    """Say what answers here; agents ask at their start whether anything does."""
    body = {"name": "mlxd", "version": mlxd.__version__, "openapi": "/openapi.json"}
    return web.Response(body=orjson.dumps(body), content_type="application/json")


async def get_health(request: web.Request) -> web.Response:  # noqa: ARG001  (all handlers take it)
    """Say that the event loop turns."""
    return web.Response(body=b'{"status":"ok"}', content_type="application/json")


async def get_ready(request: web.Request) -> web.Response:
    """Say whether requests are served: the settings are valid, the preload list is done with, no shutdown."""
    context = request.app[CONTEXT]
    problem = context.store.problem
    reasons = []
    if context.store.has_booted_invalid and problem is not None:
        # Whoever asks has no key: what is wrong is for `mlxctl status`, and for answers behind the guard.
        reasons.append(f"{problem.code}: the settings file is not valid; mlxctl status says where")
    if context.requests.is_closed:
        reasons.append("draining: the daemon is shutting down")
    elif not context.pool.ready:
        reasons.append("preload: models of the preload list are still loading")
    status = "not_ready" if reasons else "ready"
    body = {"status": status, "reasons": reasons, "queue_length": context.pool.queue_length}
    headers = {"Retry-After": "1"} if reasons else {}
    return web.Response(
        body=orjson.dumps(body), status=503 if reasons else 200, content_type="application/json", headers=headers
    )
