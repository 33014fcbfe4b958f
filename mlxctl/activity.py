"""What goes on, as rows of tables: requests that run, requests that wait, operations."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxctl.output import format_table, show_duration

Map = Mapping[str, Any]
Row = Sequence[object]

WAIT_HEADS = ("WAITING", "MODEL", "FOR", "REASON")
OPERATION_HEADS = ("OPERATION", "KIND", "PHASE", "DONE")
_REQUEST_HEADS = ("REQUEST", "MODEL", "ROUTE", "STATE", "TOKENS", "ENDPOINT", "AGE")


def wait_rows(queue: Iterable[Map]) -> list[Row]:
    """Return who waits, for which model, how long, and why."""
    return [(wait["request_id"], wait["model"], show_duration(wait["waited_s"]), wait["reason"]) for wait in queue]


def operation_rows(operations: Iterable[Map]) -> list[Row]:
    """Return what goes on after the command that began it, and how far it is."""
    return [
        (
            operation["op"],
            operation["kind"],
            operation.get("phase"),
            f"{100 * operation['done'] // operation['total']} %" if operation.get("total") else None,
        )
        for operation in operations
    ]


def made_tokens(request: Map) -> int | None:
    """Return the tokens that a request has made; None for one that an upstream answers, which does not tell."""
    return request.get("completion_tokens") if request["route"] == "local" else None


def format_requests(requests: Iterable[Map]) -> str:
    """Return running requests as a table."""
    now_s = time.time()
    return format_table(
        _REQUEST_HEADS,
        [
            (
                request["id"],
                request["model"],
                request["route"],
                request["state"],
                made_tokens(request),
                request["endpoint"],
                show_duration(max(0.0, now_s - request["started_at_ms"] / 1000)),
            )
            for request in requests
        ],
        optional=("ENDPOINT", "ROUTE", "TOKENS"),
        names=("REQUEST", "MODEL"),
    )


def format_waits(queue: Iterable[Map]) -> str:
    """Return waits as a table."""
    return format_table(WAIT_HEADS, wait_rows(queue), names=("WAITING", "MODEL"))


def format_operations(operations: Iterable[Map]) -> str:
    """Return operations as a table."""
    return format_table(OPERATION_HEADS, operation_rows(operations), optional=("KIND",))
