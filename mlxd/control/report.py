"""The answers of `status`, `ps` and `pool.show`: snapshots, made in one turn of the loop."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

from mlxd.alias import alias_targets
from mlxd.control.cloud import budget_problems, describe_budget
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page, place_of_number
from mlxd.control.request import describe
from mlxd.pool.status import DeviceStatus, PoolStatus
from mlxd.protocol.units import count

# A reply has room for some 30 times as many; nobody reads them.
_MOST_LISTED = 500
_MOST_REQUESTS = 5000


@handles("ping")
async def ping(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Answer."""
    return {"boot_id": context.info.boot_id}


@handles("status")
async def status(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return everything at a glance, and in `problems` each thing that somebody should look at, in words."""
    info, store = context.info, context.store
    device, keys = await asyncio.gather(context.pool.device(), context.router.problems())
    pool, http, cloud = context.pool.status(), info.http(), store.current.cloud
    return {
        "version": info.version,
        "pid": info.pid,
        "boot_id": info.boot_id,
        "started_at_ms": int(info.started_s * 1000),
        "uptime_ms": int((time.monotonic() - info.started_monotonic_s) * 1000),
        "gen": store.generation,
        "ready": context.pool.ready,
        "home": str(info.home.root),
        "http": {"url": http.url, "problem": http.problem},
        "config": {
            "path": str(store.path),
            "problem": None if store.problem is None else store.problem.to_wire(),
            "overlay": store.state.overlay.keys(),
        },
        "pool": describe_pool(pool, device),
        "requests": _requests(context),
        "operations": context.operations.running(),
        "cloud": {
            "enabled": cloud.enabled,
            "providers": len(cloud.providers),
            "rules": len(cloud.rules),
            "refused": list(context.upstreams.refused),
            "budget": describe_budget(context),
        },
        "crashes": context.crashes.status(),
        "audit": context.audit.status(),
        "problems": [*_problems(context, pool), *keys],
    }


def _problems(context: ControlContext, pool: PoolStatus) -> Iterator[str]:
    store, http = context.store, context.info.http()
    if context.requests.is_closed:
        yield "the daemon is shutting down: what runs may end, new requests are refused"
    if store.problem is not None:
        in_force = "the defaults hold" if store.has_booted_invalid else "the settings before hold"
        yield f"{store.problem.message}; {in_force} until it is fixed: {', or '.join(store.problem.ways)}"
    yield from store.participants.unapplied
    if http.problem is not None:
        yield http.problem
    if pool.over_limit is not None:
        yield f"over the memory limit: {pool.over_limit}"
    if pool.pressure is not None:
        yield f"loads wait and idle models are unloaded: {pool.pressure}"
    for preload in pool.preload:
        if preload.state in {"failed", "deferred"}:
            verb = "has failed" if preload.state == "failed" else "is deferred"
            yield f"preload {preload.id} {verb}" + ("" if preload.reason is None else f": {preload.reason}")
    for model in pool.models:
        if model.state == "failed" and not model.preload and _is_refused(context, model.id):
            yield f"{model.last_error}"
    yield from _log_problems(context)
    yield from _hidden_aliases(context)
    yield from _cloud_problems(context)


def _cloud_problems(context: ControlContext) -> Iterator[str]:
    for provider_id in context.upstreams.refused:
        yield f"provider {provider_id!r} has refused its key and is not asked: mlxctl cloud provider test {provider_id}"
    yield from budget_problems(context)
    if context.store.current.cloud.enabled:
        for target in describe_budget(context)["unpriced"]:
            yield f"{target} has no price and is not asked while money is bounded: mlxctl cloud price set {target}"


def _log_problems(context: ControlContext) -> Iterator[str]:
    log = context.audit.status()
    if log["problem"] is not None:
        lost = f", {count(log['dropped'], 'row')} lost" if log["dropped"] else ""
        yield f"the request log is not written: {log['problem']} ({count(log['queued'], 'row')} waiting{lost})"


def _hidden_aliases(context: ControlContext) -> Iterator[str]:
    for alias, model_id in alias_targets(context.store.current).items():
        if context.catalog.has_id(alias):
            yield f"the alias {alias!r} of {model_id} is hidden by the model of that name on this disk"


def _is_refused(context: ControlContext, model_id: str) -> bool:
    return context.catalog.has_id(model_id) and context.crashes.refusal(context.catalog.get(model_id)) is not None


@handles("ps")
async def ps(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the models that the pool has to do with, and what runs and waits."""
    pool = describe_pool(context.pool.status())
    return {
        "models": pool["models"],
        "queue": pool["queue"],
        "requests": _requests(context),
        "operations": context.operations.running(),
    }


@handles("pool.show")
async def show_pool(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the pool's own snapshot."""
    device = await context.pool.device()
    return describe_pool(context.pool.status(), device)


@handles("queue.show")
async def show_queue(context: ControlContext, request: Request) -> Reply:
    """Return who waits, oldest first, how many that are in all, and how many may."""
    waiting = context.pool.status().queue
    bounds = context.store.current.queue
    page = make_page(
        request.params,
        "queue",
        [dataclasses.asdict(wait) for wait in waiting],
        lambda index: place_of_number(waiting[index].position),
        most=_MOST_LISTED,
    )
    return {
        **page,
        "waiting": len(waiting),
        "size": bounds.size,
        "per_model": bounds.per_model,
        "timeout_s": bounds.timeout,
    }


def describe_pool(status: PoolStatus, device: DeviceStatus | None = None) -> dict[str, Any]:
    """Return the pool's snapshot with the oldest of its queue; `waiting` counts all, which `queue.show` lists."""
    oldest = dataclasses.replace(status, queue=status.queue[:_MOST_LISTED])
    shown = None if device is None else dataclasses.asdict(device)
    return {**dataclasses.asdict(oldest), "waiting": len(status.queue), "device": shown}


def _requests(context: ControlContext) -> list[dict[str, Any]]:
    """Return the oldest running requests; `request.list` has them all."""
    return [describe(running) for running in context.requests.list()[:_MOST_REQUESTS]]


def snapshot(context: ControlContext) -> dict[str, Any]:
    """Return what a subscription to `events` begins with."""
    return {
        "gen": context.store.generation,
        "pool": describe_pool(context.pool.status()),
        "requests": _requests(context),
        "operations": context.operations.running(),
    }
