"""`settings.*`: settings one by one and the file as a whole, and how every change of settings is answered."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mlxd.config import CommitResult, Edit, Edits, Revert, Terms, document
from mlxd.config.default import render_default
from mlxd.config.document import parse_key
from mlxd.config.scan import index_lines, line_of
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page, place_of_number
from mlxd.pool.status import PoolPlan
from mlxd.protocol.errors import FileInvalid, InvalidRequest, WaitEnded
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import lookup

_TEXT = "the text"  # as errors call it


@handles("settings.get")
async def get(context: ControlContext, request: Request) -> Reply:
    """Return one setting: {key, value, written, saved, default, origin, line, live, help}."""
    path = parse_key(request.params["key"])
    return _show(context, path, index_lines(context.store.state.version.text))


@handles("settings.list")
async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return every setting as `get` does, and the path of the file; those of keyed tables once per entry."""
    state = context.store.state
    lines = index_lines(state.version.text)
    shown = [_show(context, path, lines) for path in document.paths(state.document)]
    page = make_page(request.params, "settings", shown, place_of_number)
    return {"path": str(context.store.path), **page, "overlay": state.overlay.keys()}


def _show(context: ControlContext, path: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> dict[str, Any]:
    row = document.row_of(path)
    state = context.store.state
    origin = state.origin(path)
    return {
        "key": format_path(path),
        "value": plain(_live(state.settings, path)),
        "written": document.written(state.document, path)[0],
        "saved": document.written(state.version.document, path)[0],
        "default": row.default,
        "origin": origin,
        "line": line_of(lines, path) if origin == "file" else None,
        "live": True,  # every setting applies at once
        "help": row.help,
    }


def _live(settings: Settings, path: tuple[str, ...]) -> Any:
    try:
        return lookup(settings, path)
    except KeyError:  # a setting of a model, provider or rule that the file does not have
        return None


def plain(value: Any) -> Any:
    """Return a value of a setting as JSON and msgpack have it."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float) and math.isinf(value):
        return None  # never: JSON has no infinity
    return list(value) if isinstance(value, tuple) else value


@handles("settings.set")
async def set_many(context: ControlContext, request: Request) -> Reply:
    """Change settings, all or none; to unset what is runtime-only leads back to the file."""
    changes: Mapping[str, Any] = request.params["changes"]
    unset = None if request.persist else Revert.TO_FILE
    edits = [Edit(parse_key(key), unset if value is None else value) for key, value in changes.items()]
    return await commit(context, request, edits)


async def commit(context: ControlContext, request: Request, edits: Edits) -> Reply:
    """Commit the edits; return {gen, changed, warnings, dry_run, memory} and what it moves: evicting, ..., op."""
    return answer(context, request, await context.store.commit(edits, terms(request)))


def terms(request: Request) -> Terms:
    """Return how the request wants its change."""
    return Terms(
        request.operation,
        if_gen=request.if_gen,
        dry_run=request.dry,
        force=request.force,
        persist=request.persist,
        uid=request.peer.uid,
        pid=request.peer.pid,
    )


def answer(context: ControlContext, request: Request, result: CommitResult) -> Reply:
    """Return the reply to a change of settings."""
    reply: Reply = {
        "gen": result.generation,
        "changed": result.changed,
        "warnings": result.warnings,
        "dry_run": result.dry_run,
        "runtime_only": result.is_runtime_only,
        "rewritten": result.is_rewritten,
    }
    moved = result.effects.get("pool")
    if isinstance(moved, PoolPlan):
        reply |= show_plan(moved)
        if moved.model_ids and not result.dry_run:
            reply["op"] = watch(context, moved, force=request.force)
    else:
        memory = context.pool.status().memory
        reply["memory"] = {"limit_bytes": memory.limit_bytes, "reserved_bytes": memory.reserved_bytes}
    listening = (result.effects.get("http") or {}).get("listening")
    if listening is not None:
        reply["listening"] = listening
    return reply


def show_plan(plan: PoolPlan) -> dict[str, Any]:
    """Return a plan as replies have it."""
    shown: Mapping[str, Any] = dataclasses.asdict(plan)
    memory = {name: shown[name] for name in ("limit_bytes", "reserved_bytes")}
    return {name: value for name, value in shown.items() if name not in memory} | {"memory": memory}


def watch(context: ControlContext, moved: PoolPlan, *, force: bool) -> str:
    """Return the id of an operation that ends when what the change began has come to its end."""

    async def run() -> Mapping[str, Any]:
        pool = context.pool
        leaving = dataclasses.replace(moved, loading=())
        busy = await pool.wait_settled(leaving)
        if busy and force:
            pool.force_drain(model.id for model in moved.draining)
            busy = await pool.wait_settled(leaving)
        if busy:
            raise WaitEnded(
                f"still busy, and it goes on: {'; '.join(busy)}", hint="mlxctl ps", data={"busy": list(busy)}
            )
        loading = dataclasses.replace(moved, evicting=(), draining=(), aborting=())
        busy = await pool.wait_settled(loading, context.store.current.pool.load_timeout)
        if busy:
            raise WaitEnded(
                f"still loading, and it goes on: {'; '.join(busy)}", hint="mlxctl ps", data={"busy": list(busy)}
            )
        return {"models": list(moved.model_ids)}

    return context.operations.start("pool.change", moved.model_ids, run).id


# The file as a whole


@handles("settings.path")
async def path(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return where the file is and whether there is one."""
    return {"path": str(context.store.path), "exists": context.store.path.exists()}


@handles("settings.read")
async def read(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the text, valid or not, or the commented default; and what `settings.apply` takes as `base`."""
    content = context.store.disk.read()
    try:
        text = render_default() if content.data is None else content.data.decode()
    except UnicodeDecodeError:
        raise FileInvalid(f"{context.store.path} is not UTF-8", hint="fix the file with an editor") from None
    return {
        "path": str(context.store.path),
        "exists": content.data is not None,
        "text": text,
        "sha256": content.digest,
        "gen": context.store.generation,
    }


@handles("settings.validate")
async def validate(context: ControlContext, request: Request) -> Reply:
    """Check a text, or the file on disk, and change nothing."""
    warnings = context.store.check_text(request.params.get("text"), request.params.get("name") or _TEXT)
    return {"path": str(context.store.path), "valid": True, "warnings": warnings}


@handles("settings.reload")
async def reload(context: ControlContext, request: Request) -> Reply:
    """Take up the file as it is now."""
    return answer(context, request, await context.store.reload(Terms("file", request.if_gen, request.dry)))


@handles("settings.apply")
async def apply(context: ControlContext, request: Request) -> Reply:
    """Take a text for the whole file."""
    try:
        result = await _replace(context, request)
    except FileInvalid as error:
        if error is not context.store.problem:
            raise
        raise FileInvalid(
            error.message,
            param=error.param,
            hint=f"{error.hint}\nthe same with --force, which keeps the file that is not valid aside",
            data=error.data,
        ) from None
    return answer(context, request, result)


async def _replace(context: ControlContext, request: Request) -> CommitResult:
    return await context.store.replace(
        request.params["text"],
        terms(request),
        name=request.params.get("name") or _TEXT,
        base=request.params.get("base"),
        over_invalid=request.force,
    )


@handles("settings.history")
async def history(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the generations, newest first: {gen, time_ms, source, changed, runtime_only, current}."""
    records = await asyncio.to_thread(context.store.disk.history.records)
    return {
        "gen": context.store.generation,
        "generations": [
            {
                "gen": record.generation,
                "time_ms": record.time_ms,
                "source": record.source,
                "changed": list(record.changed),
                "runtime_only": not record.has_version,
                "current": record.generation == context.store.generation,
            }
            for record in reversed(records)
        ],
    }


@handles("settings.rollback")
async def rollback(context: ControlContext, request: Request) -> Reply:
    """Take the file of an earlier generation, as a generation of its own."""
    return answer(context, request, await context.store.rollback(request.params["gen"], terms(request)))


@handles("settings.diff")
async def diff(context: ControlContext, request: Request) -> Reply:
    """Return what differs, each as {key, old, new}.

    With `old`: `changed`, from that generation's file to that of `new`, or to the present one. Without: `overlay`, from
    the file to what is runtime-only, and `pending`, from the file in force to the one on the disk; when that one is not
    valid, `problem` says why.
    """
    store = context.store
    old, new = request.params.get("old"), request.params.get("new")
    if old is None:
        if new is not None:
            raise InvalidRequest("settings.diff needs 'old' when it is given 'new'", param="old")
        pending, problem = _pending(context)
        overlay = document.differences(store.state.version.document, store.state.document)
        return {"gen": store.generation, "overlay": overlay, "pending": pending, "problem": problem}
    before = await asyncio.to_thread(store.disk.version_of, old)
    after = store.state.version if new is None else await asyncio.to_thread(store.disk.version_of, new)
    return {
        "gen": store.generation,
        "old": old,
        "new": new,
        "changed": document.differences(before.document, after.document),
    }


def _pending(context: ControlContext) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    try:
        found = context.store.disk.parse(context.store.disk.read())
    except FileInvalid as error:
        return [], error.to_wire()
    return document.differences(context.store.state.version.document, found.document), None
