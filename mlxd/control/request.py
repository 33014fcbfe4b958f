"""`request.*`: what is being answered, and its end by an operator."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlxd.control.context import ControlContext, Reply, Request
from mlxd.control.page import make_page, place_of_number
from mlxd.protocol.errors import NotFound
from mlxd.requests import RunningRequest


def describe(request: RunningRequest) -> dict[str, Any]:
    """Return a running request as a client sees it."""
    return {
        "id": request.id,
        "endpoint": request.endpoint,
        "model": request.model,
        "route": request.route,
        "started_at_ms": int(request.started_at_s * 1000),
        "state": request.state.value,
        "completion_tokens": request.completion_tokens,
    }


async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return the running requests, oldest first."""
    running = context.requests.list()
    shown = [describe(one) for one in running]
    return make_page(request.params, "requests", shown, lambda index: place_of_number(running[index].number))


async def show(context: ControlContext, request: Request) -> Reply:
    """Return the requests with this id, each with its wait in the queue, if it waits there."""
    request_id = request.params["request"]
    found = [describe(running) for running in context.requests.list() if running.id == request_id]
    if not found:
        raise _not_found(request_id)
    waits = [dataclasses.asdict(wait) for wait in context.pool.status().queue if wait.request_id == request_id]
    return {"requests": found, "waits": waits}


async def cancel(context: ControlContext, request: Request) -> Reply:
    """End the requests with this id; their clients get an error, in the stream when that has begun."""
    request_id = request.params["request"]
    if all(running.id != request_id for running in context.requests.list()):
        raise _not_found(request_id)
    return {"request": request_id, "cancelled": context.requests.cancel(request_id)}


def _not_found(request_id: str) -> NotFound:
    return NotFound(f"there is no running request {request_id[:80]!r}", hint="mlxctl request list")
