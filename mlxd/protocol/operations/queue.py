"""The queue: requests that wait for a place."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, count

TABLE = (
    Operation(
        "queue.show",
        "The requests that have not started: place, wait, reason; and the bounds of the queue.",
        {**PAGE, "limit": count("Most requests to list, oldest first; 500 when left out.")},
    ),
)
