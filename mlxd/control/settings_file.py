"""`settings.*` about the file as a whole: where it is, what was in it, what differs, another one in its place."""

from __future__ import annotations

import asyncio
from typing import Any

from mlxd.config import CommitResult, Terms, document
from mlxd.config.default import render_default
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.setting import answer, terms
from mlxd.protocol.errors import FileInvalid, InvalidRequest

_TEXT = "the text"  # as errors call it


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
        raise FileInvalid(f"{context.store.path} is not UTF-8", hint="mend the file with an editor") from None
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
