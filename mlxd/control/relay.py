"""What the pool, the settings store and the running requests tell of themselves, into the log and onto the bus."""

from __future__ import annotations

import logging

from mlxd.config import StoreEvent
from mlxd.control.bus import Bus
from mlxd.pool.event import PoolEvent
from mlxd.requests import RequestEvent

_WARNINGS = frozenset(
    {"model.load_failed", "model.load_retried", "sequence.retried", "pool.over_limit", "pool.pressed"}
)
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
