"""`model.*` and `catalog.rescan`: what lies on the disk, what of it is loaded, and what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxd.catalog import ModelEntry, context_limit
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.operation import OperationState, Run
from mlxd.control.page import make_page
from mlxd.control.setting import show_plan
from mlxd.pool.status import ModelStatus
from mlxd.protocol.errors import CommitFailed, Forbidden, InUse
from mlxd.protocol.settings import ModelSettings, Settings
from mlxd.protocol.units import count

# Hidden: the catalog takes no notice of it, and what is left of a deletion that was killed is found again.
_TRASH_PREFIX = ".removed-"
_log = logging.getLogger(__name__)


@handles("model.list")
async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return all models on disk with their state, and those that the pool holds without the disk."""
    residents = _residents(context)
    shown = [_show(context, entry, residents.pop(entry.id, None)) for entry in context.catalog.entries()]
    shown += [dataclasses.asdict(resident) for resident in residents.values()]
    shown.sort(key=lambda model: model["id"])
    return make_page(request.params, "models", shown, lambda index: str(shown[index]["id"]))


@handles("model.show")
async def show(context: ControlContext, request: Request) -> Reply:
    """Return one model: its files and, when the pool has to do with it, its state there."""
    entry = context.catalog.resolve(request.params["model"])
    return _show(context, entry, _residents(context).get(entry.id))


def _residents(context: ControlContext) -> dict[str, ModelStatus]:
    return {model.id: model for model in context.pool.status().models}


def _show(context: ControlContext, entry: ModelEntry, resident: ModelStatus | None) -> dict[str, Any]:
    settings = context.store.current
    model = settings.models.get(entry.id)
    shown: dict[str, Any] = {
        "id": entry.id,
        "state": "unloaded",
        "path": str(entry.path),
        "kind": entry.kind,
        "model_type": entry.model_type,
        "weights_bytes": entry.weights_bytes,
        "disk_bytes": entry.disk_bytes,
        "context_length": context_limit(settings, entry),
        "own_context_length": entry.context_length,
        "kv_bytes_per_1000_tokens": entry.kv.bytes_for(1000),
        "kv_confidence": entry.kv_confidence.value,
        "quantization": entry.quantization,
        "source": entry.source,
        "problem": entry.problem,
        "base": entry.base,
        "aliases": [] if model is None else list(model.aliases),
        "sampling": {} if model is None else _sampling(model),
        "pinned": model is not None and model.pin,
        "preload": entry.id in settings.pool.preload,
    }
    if resident is not None:
        shown |= {name: value for name, value in dataclasses.asdict(resident).items() if value is not None}
    return shown


def _sampling(model: ModelSettings) -> dict[str, float]:
    """Return what the settings say where a request is silent."""
    return model.sampling | ({} if model.max_tokens is None else {"max_tokens": model.max_tokens})


@handles("model.load")
async def load(context: ControlContext, request: Request) -> Reply:
    """Begin to load a model, and say what goes for it; what refuses it at once is answered at once."""
    model_id = context.catalog.resolve(request.params["model"]).id
    resident = _residents(context).get(model_id)
    if resident is not None and resident.state == "ready":
        return {"model": model_id, "state": "ready"}
    planned = show_plan(context.pool.plan_load(model_id, force=request.force))
    if request.dry:
        return {"model": model_id, "dry_run": True, **planned}

    async def run() -> Mapping[str, Any]:
        await context.pool.load(model_id, force=request.force)
        return {"model": model_id, "state": "ready"}

    begun = await begin(context, "model.load", model_id, run)
    return {"model": model_id, **planned, "loading": [model_id], **begun}


@handles("model.unload")
async def unload(context: ControlContext, request: Request) -> Reply:
    """Begin to unload a model; its requests end first, or now with *force*."""
    model_id = context.catalog.alias_target(request.params["model"])
    residents = _residents(context)
    resident = residents.get(model_id)
    if resident is None:
        model_id = context.catalog.resolve(request.params["model"]).id
    is_there = resident is not None and resident.state in {"ready", "loading", "draining", "unloading"}
    if request.dry:
        return {
            "model": model_id,
            "dry_run": True,
            **show_plan(context.pool.plan_unload(model_id, force=request.force)),
        }

    async def run() -> Mapping[str, Any]:
        return {"model": model_id, "was_loaded": await context.pool.unload(model_id, force=request.force)}

    reply = {"model": model_id, **await begin(context, "model.unload", model_id, run)}
    if resident is None or not is_there:
        return reply
    on_it = [model for model in residents.values() if model.base == model_id and model.state in {"ready", "loading"}]
    shown: dict[str, list[dict[str, Any]]] = {}
    for model in (*on_it, resident):
        held_bytes = model.weights_bytes + model.kv_bytes + model.prompt_cache_bytes + model.grammar_bytes
        if model.state == "loading":
            shown.setdefault("aborting", []).append({"id": model.id, "bytes": model.reserved_bytes})
        elif model.leases:
            shown.setdefault("draining", []).append({"id": model.id, "requests": model.leases, "bytes": held_bytes})
        else:
            shown.setdefault("unloading", []).append({"id": model.id, "bytes": held_bytes})
    if "unloading" in shown:
        shown["evicting"] = shown["unloading"]  # its name in 0.1.0
    return reply | shown


async def begin(context: ControlContext, kind: str, model_id: str, run: Run) -> Reply:
    """Start an operation and return its id; nothing when it has ended already, and its error when it failed at once."""
    operation = context.operations.start(kind, (model_id,), run)
    for _ in range(3):  # enough turns for what needs no waiting
        await asyncio.sleep(0)
    if operation.state is OperationState.RUNNING:
        return {"op": operation.id}
    if operation.failure is not None:
        raise operation.failure
    return {}


@handles("model.reset")
async def reset(context: ControlContext, request: Request) -> Reply:
    """Forget that loads of the model failed, or killed the daemon; the next one is tried at once."""
    model_id = context.catalog.resolve(request.params["model"]).id
    had_crashed = await context.crashes.reset(model_id)
    had_failed = context.pool.reset(model_id)
    return {"model": model_id, "reset": had_crashed or had_failed}


@handles("catalog.rescan")
async def rescan(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Look at the disk again and say what came and what went."""
    before = {entry.id for entry in context.catalog.entries()}
    await _rescan(context)
    after = {entry.id for entry in context.catalog.entries()}
    return {"models": len(after), "added": sorted(after - before), "removed": sorted(before - after)}


async def _rescan(context: ControlContext) -> None:
    await context.catalog.rescan()
    context.pool.rescan()


@handles("model.remove")
async def remove(context: ControlContext, request: Request) -> Reply:
    """Delete the files of a model of our own folder that nothing uses."""
    entry = context.catalog.resolve(request.params["model"])
    root = context.info.home.models
    _check_ours(entry, root)
    _check_unused(context, entry)
    # Hidden in one step, so that nobody finds half a model; then deleted at leisure.
    trash = root / f"{_TRASH_PREFIX}{secrets.token_hex(4)}"
    try:
        entry.path.rename(trash)
    except OSError as error:
        raise CommitFailed(f"{entry.path} cannot be removed: {error.strerror}; nothing was deleted") from None
    await _rescan(context)
    await asyncio.to_thread(_empty_trash, root, entry.path.parent)
    _log.info("removed %s (%s)", entry.id, entry.path)
    return {"model": entry.id, "path": str(entry.path), "freed_bytes": entry.disk_bytes}


def _check_ours(entry: ModelEntry, root: Path) -> None:
    """Refuse what another program keeps, also when a link of ours leads there."""
    if entry.path.is_relative_to(root) and entry.path.parent.resolve().is_relative_to(root.resolve()):
        return
    if entry.source == "huggingface":
        raise Forbidden(
            f"the files of {entry.id} belong to the Hugging Face cache, which other programs use: {entry.path}",
            code="model.not_ours",
            hint=f"hf cache rm model/{entry.id}",
            data={"path": str(entry.path)},
        )
    raise Forbidden(
        f"the files of {entry.id} do not lie in {root}: {entry.path}",
        code="model.not_ours",
        hint="delete that folder by hand, or take it out of catalog.paths",
        data={"path": str(entry.path)},
    )


def _check_unused(context: ControlContext, entry: ModelEntry) -> None:
    settings: Settings = context.store.current
    resident = _residents(context).get(entry.id)
    if resident is not None and (resident.leases or resident.waiting):
        requests = count(resident.leases + resident.waiting, "request")
        raise InUse(f"{entry.id} has {requests}", hint=f"mlxctl model unload {entry.id} --wait, then again")
    if resident is not None and resident.state not in {"unloaded", "failed"}:
        raise InUse(f"{entry.id} is {resident.state}", hint=f"mlxctl model unload {entry.id} --wait, then again")
    if entry.id in settings.pool.preload:
        raise InUse(f"{entry.id} is in pool.preload", hint=f"mlxctl preload remove {entry.id}, then again")
    if entry.id in settings.models and settings.models[entry.id].pin:
        raise InUse(f"{entry.id} is pinned", hint=f"mlxctl model unpin {entry.id}, then again")


def _empty_trash(root: Path, parent: Path) -> None:
    """Delete what was hidden, also by a deletion that did not come to its end, and a folder that is empty now."""
    with contextlib.suppress(OSError):  # what cannot be deleted now is found again by the next removal
        for trash in root.glob(f"{_TRASH_PREFIX}*"):
            if trash.is_symlink():
                trash.unlink(missing_ok=True)
            else:
                shutil.rmtree(trash, ignore_errors=True)
        if parent != root:
            parent.rmdir()
