"""`settings.*`, and how every change of settings is committed and answered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlxd.config import CommitResult, Edit, Edits
from mlxd.config.document import parse_key, row_of
from mlxd.control.context import ControlContext, Reply, Request
from mlxd.pool.status import PoolPlan
from mlxd.protocol.errors import WaitEnded
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import lookup

_SOURCE = "mlxctl"


async def get(context: ControlContext, request: Request) -> Reply:
    """Return one setting: {key, value, written, default, origin, live, help}."""
    return _show(context, parse_key(request.params["key"]))


async def list_all(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return every setting as `get` does; those of keyed tables once per entry of the file."""
    return {"settings": [_show(context, path) for path in context.store.entries()]}


def _show(context: ControlContext, path: tuple[str, ...]) -> dict[str, Any]:
    row = row_of(path)
    written, origin = context.store.as_written(path)
    return {
        "key": format_path(path),
        "value": _plain(_live(context.store.current, path)),
        "written": written,
        "default": row.default,
        "origin": origin,
        "live": row.live,
        "help": row.help,
    }


def _live(settings: Settings, path: tuple[str, ...]) -> Any:
    try:
        return lookup(settings, path)
    except KeyError:  # a setting of a model, provider or rule that the file does not have
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float) and math.isinf(value):
        return None  # never: JSON has no infinity
    return list(value) if isinstance(value, tuple) else value


async def path(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return where the file is and whether there is one."""
    return {"path": str(context.store.path), "exists": context.store.path.exists()}


async def validate(context: ControlContext, request: Request) -> Reply:
    """Check a text, or the file on disk, and change nothing."""
    warnings = context.store.check_text(request.params.get("text"))
    return {"path": str(context.store.path), "valid": True, "warnings": warnings}


async def set_many(context: ControlContext, request: Request) -> Reply:
    """Change settings, all or none."""
    changes: Mapping[str, Any] = request.params["changes"]
    return await commit(context, request, [Edit(parse_key(key), value) for key, value in changes.items()])


async def reload(context: ControlContext, request: Request) -> Reply:
    """Take up the file as it is now."""
    return _answer(context, request, await context.store.reload("file"))


async def commit(context: ControlContext, request: Request, edits: Edits) -> Reply:
    """Commit the edits; return {gen, changed, warnings, dry_run, memory} and what it moves: evicting, ..., op."""
    result = await context.store.commit(
        edits, source=_SOURCE, if_gen=request.if_gen, dry_run=request.dry, force=request.force
    )
    return _answer(context, request, result)


def _answer(context: ControlContext, request: Request, result: CommitResult) -> Reply:
    memory = context.pool.status().memory
    reply: Reply = {
        "gen": result.generation,
        "changed": result.changed,
        "warnings": result.warnings,
        "dry_run": result.dry_run,
        "memory": {"limit_bytes": memory.limit_bytes, "reserved_bytes": memory.reserved_bytes},
    }
    moved = result.effects.get("pool")
    if isinstance(moved, PoolPlan):
        shown = dataclasses.asdict(moved)
        reply["memory"] = {name: shown.pop(name) for name in ("limit_bytes", "reserved_bytes")}
        reply |= shown
        if moved.model_ids and not result.dry_run:
            reply["op"] = _watch(context, moved, force=request.force)
    listening = (result.effects.get("http") or {}).get("listening")
    if listening is not None:
        reply["listening"] = listening
    return reply


def _watch(context: ControlContext, moved: PoolPlan, *, force: bool) -> str:
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
        loading = dataclasses.replace(moved, evicting=(), draining=())
        busy = await pool.wait_settled(loading, context.store.current.pool.load_timeout)
        if busy:
            raise WaitEnded(
                f"still loading, and it goes on: {'; '.join(busy)}", hint="mlxctl ps", data={"busy": list(busy)}
            )
        return {"models": list(moved.model_ids)}

    return context.operations.start("pool.change", moved.model_ids, run).id


def keyed(table: Sequence[str], entry: str, **values: Any) -> list[Edit]:
    """Return the edits that give an entry of a keyed table these values; None unsets one."""
    return [Edit((*table, entry, name), value) for name, value in values.items()]
