"""Settings of models: `[models."ID"]` (pin, aliases, context, adapter, when it is loaded again) and `pool.preload`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mlxd.alias import alias_targets
from mlxd.config import Edit, Revert
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.model import begin
from mlxd.control.setting import commit
from mlxd.protocol.errors import InvalidRequest, InvalidValue, ModelNotFound, NotFound
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import find_row

_TABLE = "models"
_PRELOAD = ("pool", "preload")


@handles("model.pin")
async def pin(context: ControlContext, request: Request) -> Reply:
    """Keep the model from being evicted."""
    model_id = context.catalog.resolve(request.params["model"]).id
    return await commit(context, request, [Edit((_TABLE, model_id, "pin"), value=True)])


@handles("model.unpin")
async def unpin(context: ControlContext, request: Request) -> Reply:
    """Make the model ordinary; one that is no longer on disk can be unpinned as well."""
    model_id = _known_id(context, request.params["model"])
    return await commit(context, request, [Edit((_TABLE, model_id, "pin"), None)])


@handles("model.set")
async def set_many(context: ControlContext, request: Request) -> Reply:
    """Change the settings of a model; one whose files or context that concerns is loaded again as `reload` says."""
    changes: Mapping[str, Any] = request.params.get("changes", {})
    mode = _mode(request)
    if not changes and mode is None:
        raise InvalidRequest("there is nothing to set", param="changes", hint="mlxctl model set MODEL KEY=VALUE...")
    model_id = request.params["model"]
    if changes.get("adapter") in {None, "none"} or context.catalog.has(model_id):  # else it is defined just now
        model_id = _known_id(context, model_id)
    unset = None if request.persist else Revert.TO_FILE
    edits = [Edit((_TABLE, model_id, name), unset if value is None else value) for name, value in changes.items()]
    was_stale = _stale(context, model_id)
    if mode is not None and not request.dry:
        if not context.catalog.has(model_id):
            raise InvalidRequest(f"{model_id!r} is not there yet: it is loaded when it is asked for", param="reload")
        context.pool.reload(model_id, mode)
    try:
        reply = await commit(context, request, edits)
    except BaseException:
        if mode is not None and context.catalog.has(model_id):
            context.pool.reload(model_id, None)
        raise
    reply["model"] = model_id
    return reply | await _reload(context, request, reply, was_stale)


async def _reload(context: ControlContext, request: Request, reply: Reply, was_stale: str | None) -> Reply:
    """Return what of the reply is about the model's reload, and begin to wait for one."""
    model_id: str = reply["model"]
    stale = {item["id"]: item for item in reply.get("stale", ())}
    reason = _stale(context, model_id) or was_stale  # it may be on its way already
    if model_id not in stale and reason is not None and context.catalog.has(model_id):
        stale[model_id] = {"id": model_id, "reason": reason, "reload": context.pool.reload_mode(model_id)}
    if model_id not in stale:
        return {}
    if request.params.get("reload") is not None:
        stale[model_id]["reload"] = request.params["reload"]
    shown: Reply = {"stale": list(stale.values())}
    if request.dry or stale[model_id]["reload"] == "next-load":
        return shown

    async def run() -> Mapping[str, Any]:
        await context.pool.wait_reloaded(model_id)
        return {"model": model_id}

    return shown | await begin(context, "model.reload", model_id, run)


def _stale(context: ControlContext, model_id: str) -> str | None:
    return next((model.stale for model in context.pool.status().models if model.id == model_id), None)


def _mode(request: Request) -> str | None:
    mode: str | None = request.params.get("reload")
    row = find_row((_TABLE, "*", "reload"))
    if mode is None or row is None:
        return None
    try:
        row.kind.parse(mode, 0)
    except ValueError as error:
        raise InvalidRequest(f"reload: {error}", param="reload") from None
    return mode


def _known_id(context: ControlContext, name: str) -> str:
    """Return the id that *name* means: of a model on disk, or of one that the settings still name."""
    model_id = context.catalog.alias_target(name)
    return model_id if model_id in context.store.current.models else context.catalog.resolve(name).id


@handles("model.alias.list")
async def list_aliases(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return every alias with its model, and why it leads to none, if so."""
    return {
        "aliases": [
            {"alias": alias, "model": model_id, "problem": _alias_problem(context, alias, model_id)}
            for alias, model_id in sorted(alias_targets(context.store.current).items())
        ]
    }


def _alias_problem(context: ControlContext, alias: str, model_id: str) -> str | None:
    if context.catalog.alias_target(alias) == alias:
        return "a model on this disk has this name and goes before"
    try:
        return context.catalog.get(model_id).problem
    except ModelNotFound:
        return "the model is not on this disk"


@handles("model.alias.add")
async def add_alias(context: ControlContext, request: Request) -> Reply:
    """Give a model another name; one that it has already changes nothing."""
    model_id = _known_id(context, request.params["model"])
    alias = request.params["alias"]
    if context.catalog.has_id(alias):
        key = format_path((_TABLE, model_id, "aliases"))
        raise InvalidValue(f"{key}: {alias!r} is the id of a model on this disk", param=key, hint="mlxctl model list")

    def edits(current: Settings) -> Sequence[Edit]:
        model = current.models.get(model_id)
        aliases = [] if model is None else list(model.aliases)
        return [] if alias in aliases else [Edit((_TABLE, model_id, "aliases"), [*aliases, alias])]

    return await commit(context, request, edits)


@handles("model.alias.remove")
async def remove_alias(context: ControlContext, request: Request) -> Reply:
    """Take another name away."""
    alias = request.params["alias"]

    def edits(current: Settings) -> Sequence[Edit]:
        model_id = alias_targets(current).get(alias)
        if model_id is None:
            raise NotFound(f"there is no alias {alias!r}", hint="mlxctl model alias list", param="alias")
        left = [kept for kept in current.models[model_id].aliases if kept != alias]
        return [Edit((_TABLE, model_id, "aliases"), left if left or not request.persist else None)]

    return await commit(context, request, edits)


@handles("preload.list")
async def list_preloads(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the list with the state of each model."""
    return {"preload": [dataclasses.asdict(preload) for preload in context.pool.status().preload]}


@handles("preload.add")
async def add_preload(context: ControlContext, request: Request) -> Reply:
    """Put a model into the list, or to another place in it."""
    model_id = context.catalog.resolve(request.params["model"]).id
    place = request.params.get("at")

    def edits(current: Settings) -> Sequence[Edit]:
        if place is None and model_id in current.pool.preload:
            return []
        models = [kept for kept in current.pool.preload if kept != model_id]
        models.insert(len(models) if place is None else place, model_id)
        return [Edit(_PRELOAD, models)]

    return await commit(context, request, edits)


@handles("preload.remove")
async def remove_preload(context: ControlContext, request: Request) -> Reply:
    """Take a model off the list, and unload it if asked to."""
    model_id = context.catalog.alias_target(request.params["model"])

    def edits(current: Settings) -> Sequence[Edit]:
        if model_id not in current.pool.preload:
            raise NotFound(f"{model_id!r} is not in pool.preload", hint="mlxctl preload list", param="model")
        return [Edit(_PRELOAD, [kept for kept in current.pool.preload if kept != model_id])]

    reply = await commit(context, request, edits)
    if request.params.get("unload") and not request.dry:

        async def run() -> Mapping[str, Any]:
            return {"model": model_id, "was_loaded": await context.pool.unload(model_id)}

        reply["op"] = context.operations.start("model.unload", (model_id,), run).id
        await asyncio.sleep(0)  # the drain begins before the reply
    return reply


@handles("preload.set")
async def set_preloads(context: ControlContext, request: Request) -> Reply:
    """Replace the list."""
    return await commit(context, request, [Edit(_PRELOAD, request.params["models"])])
