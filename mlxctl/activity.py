"""What goes on, as rows of tables: requests that run, requests that wait, operations."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
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


def request_state(request: Map, waiting: Collection[str]) -> str:
    """Return the state; a request without a text that is not *waiting* for a place is in its prefill."""
    is_placed = request["route"] == "local" and request["id"] not in waiting
    return "prefill" if is_placed and request["state"] == "waiting" else str(request["state"])


def format_requests(requests: Iterable[Map], queue: Iterable[Map] | None = None) -> str:
    """Return running requests as a table; the *queue* tells which of them have no place yet."""
    waiting = None if queue is None else {wait["request_id"] for wait in queue}
    now_s = time.time()
    return format_table(
        _REQUEST_HEADS,
        [
            (
                request["id"],
                request["model"],
                request["route"],
                request["state"] if waiting is None else request_state(request, waiting),
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
