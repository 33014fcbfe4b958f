"""The daemon as a whole: what it does, and its end."""

from __future__ import annotations

from mlxd.protocol.operations.row import Operation, flag

TABLE = (
    Operation("ping", "Answer at once."),
    Operation("status", "Everything at a glance: memory, models, queue, settings, sockets."),
    Operation("ps", "The loaded models and the running requests."),
    Operation("daemon.show", "The daemon's process: its files, its limits, and what it sees of the environment."),
    Operation(
        "daemon.stop",
        "End the daemon once running requests have ended.",
        {"now": flag("Cancel the running requests.")},
        mutates=True,
        at_once=True,
    ),
)
