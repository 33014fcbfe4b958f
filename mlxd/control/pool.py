"""`model.estimate`, `pool.simulate`, `pool.evict`: forecasts of the pool, and what is evicted by command."""

from __future__ import annotations

import dataclasses

from mlxd.config import Edit, Terms
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.setting import show_plan, watch
from mlxd.protocol.errors import InvalidRequest, MlxdError


@handles("model.estimate")
async def estimate(context: ControlContext, request: Request) -> Reply:
    """Return what a model takes."""
    model_id = context.catalog.resolve(request.params["model"]).id
    tokens, rows = request.params.get("context"), request.params.get("parallel", 1)
    for name, value in (("context", tokens), ("parallel", rows)):
        if value is not None and value < 1:
            raise InvalidRequest(f"{name} must be at least 1", param=name)
    estimated = context.pool.estimate(model_id, tokens, rows)
    if tokens is not None and estimated.context_length is not None and tokens > estimated.context_length:
        raise InvalidRequest(
            f"{tokens} tokens are more than the context of {model_id}, {estimated.context_length}", param="context"
        )
    return dataclasses.asdict(estimated)


@handles("pool.simulate")
async def simulate(context: ControlContext, request: Request) -> Reply:
    """Return what a load or another limit would do, and why it would be refused."""
    load = request.params.get("load")
    edits = [Edit(("pool", key), request.params[key]) for key in ("memory", "max_models") if key in request.params]
    if (load is None) == (not edits):
        raise InvalidRequest("pool.simulate needs either a model to load, or a memory limit or a number of models")
    if load is None:
        async with context.store.turn:
            result = await context.store.commit(edits, Terms(request.operation, dry_run=True, force=True))
        planned = result.effects.get("pool") or context.pool.plan(context.store.current)
        return {"changed": result.changed, "refused": result.warnings, **show_plan(planned)}
    model_id = context.catalog.resolve(load).id
    try:
        return {"model": model_id, "refused": [], **show_plan(context.pool.plan_load(model_id))}
    except MlxdError as error:
        return {"model": model_id, "refused": [error.message]}


@handles("pool.evict")
async def evict(context: ControlContext, request: Request) -> Reply:
    """Begin to let a model go, or all that are idle."""
    model = request.params.get("model")
    model_id = None if model is None else context.catalog.alias_target(model)
    begun, kept = context.pool.evict(model_id, force=request.force, dry=request.dry)
    reply = {
        "model": model_id,
        "kept": [{"id": other, "reason": kept[other]} for other in kept],
        "dry_run": request.dry,
    }
    reply |= show_plan(begun)
    if begun.model_ids and not request.dry:
        reply["op"] = watch(context, begun, force=False)
    return reply
