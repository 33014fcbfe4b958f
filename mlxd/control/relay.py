"""Passes on what happens in the daemon: into the log, onto the bus and, of changes, into the request log."""

from __future__ import annotations

import logging

from mlxd.audit import AuditLog, ChangeRecord
from mlxd.clock import now_ms
from mlxd.config import StoreEvent
from mlxd.control.bus import Bus
from mlxd.control.context import Request
from mlxd.pool.event import PoolEvent
from mlxd.protocol.operation import Operation
from mlxd.requests import RequestEvent

_WARNINGS = frozenset(
    {"model.load_failed", "model.load_retried", "sequence.retried", "pool.over_limit", "pool.pressed"}
)
# What an operation is about; nothing else of its params is kept.
_SUBJECTS = ("model", "request", "op", "id", "name", "alias")
_log = logging.getLogger(__name__)


def relay_pool_event(bus: Bus, event: PoolEvent) -> None:
    """Log the event, unless it is too frequent for a log, and publish it as {model, message, ...}."""
    if event.message:
        _log.log(logging.WARNING if event.kind in _WARNINGS else logging.INFO, "%s", event.message)
    bus.publish(event.kind, {"model": event.model_id, "message": event.message, **event.data})


def relay_store_event(bus: Bus, event: StoreEvent) -> None:
    """Log which settings changed, or what is wrong with the file, and publish it."""
    if event.kind == "config.changed":
        changes = ", ".join(f"{change['key']} = {change['new']!r}" for change in event.data["changed"])
        _log.info("settings generation %s from %s: %s", event.data["gen"], event.data["source"], changes or "comments")
        for warning in event.data["warnings"]:
            _log.warning("%s", warning)
    elif event.kind == "config.file_invalid":
        _log.error("%s", event.data["msg"])
    else:
        _log.info("the settings file is valid again")
    bus.publish(event.kind, event.data)


def relay_request_event(bus: Bus, event: RequestEvent) -> None:
    """Publish what happens to a request; the log has its own lines for them."""
    bus.publish(event.kind, event.data)


def note_settings(audit: AuditLog, event: StoreEvent) -> None:
    """Note each setting that a commit has changed; one row where it changed the file's comments only."""
    if event.kind != "config.changed":
        return
    data = event.data
    source = str(data["source"])
    is_rollback = source.startswith("rollback")
    for change in data["changed"] or [{"key": None, "old": None, "new": None}]:
        audit.note_change(
            ChangeRecord(
                started_ms=now_ms(),
                operation="settings.rollback" if is_rollback else source,
                source="rollback" if is_rollback else "file" if source == "file" else "cli",
                generation=data["gen"],
                setting=change["key"],
                old=change["old"],
                new=change["new"],
                uid=data["uid"],
                pid=data["pid"],
                runtime_only=data["runtime_only"],
            )
        )


def note_operation(audit: AuditLog, operation: Operation, request: Request, generation: int) -> None:
    """Note an operation that was done and has changed something, but for settings, which a commit notes itself."""
    subject = next((request.params[name] for name in _SUBJECTS if name in request.params), None)
    audit.note_change(
        ChangeRecord(
            started_ms=now_ms(),
            operation=operation.name,
            source="cli",
            generation=generation,
            subject=None if subject is None else str(subject),
            uid=request.peer.uid,
            pid=request.peer.pid,
        )
    )
