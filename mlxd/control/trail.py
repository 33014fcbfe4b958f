"""Which changes become rows of the request log: settings, whoever changed them, and what else the socket changes."""

from __future__ import annotations

import time

from mlxd.audit import AuditLog, ChangeRecord
from mlxd.config import StoreEvent
from mlxd.control.context import Request
from mlxd.protocol.operation import Operation

# What an operation is about; nothing else of its params is kept.
_SUBJECTS = ("model", "request", "op", "id", "name", "alias")


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
                started_ms=_now_ms(),
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
    """Note an operation that was done and has changed something; what it did to settings is noted by the commit."""
    if operation.commits or request.dry:
        return
    subject = next((request.params[name] for name in _SUBJECTS if name in request.params), None)
    audit.note_change(
        ChangeRecord(
            started_ms=_now_ms(),
            operation=operation.name,
            source="cli",
            generation=generation,
            subject=None if subject is None else str(subject),
            uid=request.peer.uid,
            pid=request.peer.pid,
        )
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
