"""`preload.*`: the list of models that are kept loaded."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.setting import commit
from mlxd.protocol.errors import NotFound
from mlxd.protocol.settings import Settings

_PATH = ("pool", "preload")


@handles("preload.list")
async def list_all(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the list with the state of each model."""
    return {"preload": [dataclasses.asdict(preload) for preload in context.pool.status().preload]}


@handles("preload.add")
async def add(context: ControlContext, request: Request) -> Reply:
    """Put a model into the list, or to another place in it."""
    model_id = context.catalog.resolve(request.params["model"]).id
    place = request.params.get("at")

    def edits(current: Settings) -> Sequence[Edit]:
        if place is None and model_id in current.pool.preload:
            return []
        models = [kept for kept in current.pool.preload if kept != model_id]
        models.insert(len(models) if place is None else place, model_id)
        return [Edit(_PATH, models)]

    return await commit(context, request, edits)


@handles("preload.remove")
async def remove(context: ControlContext, request: Request) -> Reply:
    """Take a model off the list, and unload it if asked to."""
    model_id = context.catalog.alias_target(request.params["model"])

    def edits(current: Settings) -> Sequence[Edit]:
        if model_id not in current.pool.preload:
            raise NotFound(f"{model_id!r} is not in pool.preload", hint="mlxctl preload list", param="model")
        return [Edit(_PATH, [kept for kept in current.pool.preload if kept != model_id])]

    reply = await commit(context, request, edits)
    if request.params.get("unload") and not request.dry:

        async def run() -> Mapping[str, Any]:
            return {"model": model_id, "was_loaded": await context.pool.unload(model_id)}

        reply["op"] = context.operations.start("model.unload", (model_id,), run).id
        await asyncio.sleep(0)  # the drain begins before the reply
    return reply


@handles("preload.set")
async def set_all(context: ControlContext, request: Request) -> Reply:
    """Replace the list."""
    return await commit(context, request, [Edit(_PATH, request.params["models"])])
