"""`request.*` and `op.*`: what is being answered, what goes on after its reply, and their end by an operator."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlxd.control.context import ControlContext, Reply, Request, handles
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


@handles("request.list")
async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return the running requests, oldest first."""
    running = context.requests.list()
    shown = [describe(one) for one in running]
    return make_page(request.params, "requests", shown, lambda index: place_of_number(running[index].number))


@handles("request.show")
async def show(context: ControlContext, request: Request) -> Reply:
    """Return the requests with this id, each with its wait in the queue, if it waits there."""
    request_id = request.params["request"]
    found = [describe(running) for running in context.requests.list() if running.id == request_id]
    if not found:
        raise _not_found(request_id)
    waits = [dataclasses.asdict(wait) for wait in context.pool.status().queue if wait.request_id == request_id]
    return {"requests": found, "waits": waits}


@handles("request.cancel")
async def cancel(context: ControlContext, request: Request) -> Reply:
    """End the requests with this id; their clients get an error, in the stream when that has begun."""
    request_id = request.params["request"]
    if all(running.id != request_id for running in context.requests.list()):
        raise _not_found(request_id)
    return {"request": request_id, "cancelled": context.requests.cancel(request_id)}


def _not_found(request_id: str) -> NotFound:
    return NotFound(f"there is no running request {request_id[:80]!r}", hint="mlxctl request list")


@handles("op.list")
async def list_operations(context: ControlContext, request: Request) -> Reply:
    """Return the operations that run and the last that ended, in the order in which they began."""
    shown = context.operations.list()
    numbers = [int(operation["op"].rpartition("-")[2]) for operation in shown]
    return make_page(request.params, "operations", shown, lambda index: place_of_number(numbers[index]))


@handles("op.show")
async def show_operation(context: ControlContext, request: Request) -> Reply:
    """Return one operation."""
    return context.operations.get(request.params["op"]).show()


@handles("op.wait")
async def wait_operation(context: ControlContext, request: Request) -> Reply:
    """Return the operation when it has ended or the timeout has passed; sends its progress until then."""
    timeout_ms = request.params.get("timeout_ms")
    timeout_s = None if timeout_ms is None else timeout_ms / 1000
    shown: Reply = {}
    async for shown in context.operations.follow(request.params["op"], timeout_s):
        if shown["state"] == "running":
            await request.progress({name: shown[name] for name in ("op", "phase", "done", "total")})
    return shown


@handles("op.cancel")
async def cancel_operation(context: ControlContext, request: Request) -> Reply:
    """Give an operation up and return how it ended; what it began in the pool may go on."""
    return (await context.operations.cancel(request.params["op"])).show()
