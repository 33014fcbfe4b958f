"""The text of what goes on: requests that run, requests that wait, operations."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mlxctl.output import Column, format_pairs, format_table, show_duration
from mlxd.protocol.units import count

Map = Mapping[str, Any]

WAIT_COLUMNS: list[Column] = [("WAITING", "request_id"), ("MODEL", "model"), ("FOR", "waited_s"), ("REASON", "reason")]


def show_percent(operation: Map) -> str | None:
    """Return how far an operation is; None where nobody knows."""
    return f"{100 * operation['done'] // operation['total']} %" if operation.get("total") else None


OPERATION_COLUMNS: list[Column] = [("OPERATION", "op"), ("KIND", "kind"), ("PHASE", "phase"), ("DONE", show_percent)]


def made_tokens(request: Map) -> int | None:
    """Return the tokens that a request has made; None for one that an upstream answers, which does not tell."""
    return request.get("completion_tokens") if request["route"] == "local" else None


def request_state(request: Map, waiting: Collection[str]) -> str:
    """Return the state; a request without a text that is not *waiting* for a place is in its prefill."""
    is_placed = request["route"] == "local" and request["id"] not in waiting
    return "prefill" if is_placed and request["state"] == "waiting" else str(request["state"])


def format_requests(requests: Sequence[Map], queue: Sequence[Map] | None = None) -> str:
    """Return running requests as a table; the *queue* tells which of them have no place yet."""
    waiting = None if queue is None else {wait["request_id"] for wait in queue}
    return format_table(
        [
            ("REQUEST", "id"),
            ("MODEL", "model"),
            ("ROUTE", "route"),
            ("STATE", "state" if waiting is None else lambda request: request_state(request, waiting)),
            ("TOKENS", made_tokens),
            ("ENDPOINT", "endpoint"),
            ("AGE", lambda request: show_duration(_age_s(request))),
        ],
        requests,
        optional=("ENDPOINT", "ROUTE", "TOKENS"),
        names=("REQUEST", "MODEL"),
    )


def format_listed_requests(document: Map) -> str:
    """Return `mlxctl request list`."""
    return format_requests(document["requests"]) if document["requests"] else "no request runs"


def format_shown_requests(document: Map) -> str:
    """Return `mlxctl request show`."""
    waiting = {wait["request_id"] for wait in document["waits"]}
    parts = [_format_request(request, request_state(request, waiting)) for request in document["requests"]]
    if document["waits"]:
        parts.append(format_waits(document["waits"]))
    return "\n\n".join(parts)


def _format_request(request: Map, state: str) -> str:
    age_s, tokens = _age_s(request), made_tokens(request)
    return format_pairs(
        [
            ("request", request["id"]),
            ("model", request["model"]),
            ("route", request["route"]),
            ("endpoint", request["endpoint"]),
            ("state", state),
            ("began", f"{show_duration(age_s)} ago"),
            ("tokens", None if tokens is None else f"{tokens}, {tokens / max(1.0, age_s):.1f} a second since it began"),
        ]
    )


def format_waits(queue: Sequence[Map]) -> str:
    """Return waits as a table."""
    return format_table(WAIT_COLUMNS, queue, names=("WAITING", "MODEL"))


def format_queue(document: Map) -> str:
    """Return `mlxctl queue show`."""
    queue, waiting = document["queue"], document["waiting"]
    bounds = f"at most {document['size']}, {document['per_model']} for one model"
    if not waiting:
        return f"no request waits ({bounds})"
    table = format_table(
        [
            ("#", "position"),
            ("REQUEST", "request_id"),
            ("MODEL", "model"),
            ("PLACE", "model_position"),
            ("WAITED", "waited_s"),
            ("REASON", "reason"),
        ],
        queue,
        optional=("PLACE", "WAITED"),
        names=("REQUEST", "MODEL"),
    )
    shown = "" if len(queue) == waiting else f"; {len(queue)} of them shown"
    timeout = show_duration(document["timeout_s"])
    return f"{table}\n\n{count(waiting, 'request')} waiting ({bounds}; each for {timeout} at most){shown}"


def format_running_operations(operations: Sequence[Map]) -> str:
    """Return operations that have not ended as a table."""
    return format_table(OPERATION_COLUMNS, operations, optional=("KIND",))


def format_operations(document: Map) -> str:
    """Return `mlxctl op list`."""
    if not document["operations"]:
        return "no operation runs, and none has ended since the daemon started"
    return format_table(
        [
            ("OPERATION", "op"),
            ("KIND", "kind"),
            ("STATE", "state"),
            ("PHASE", _show_phase),
            ("MODELS", "models"),
            ("BEGAN", lambda operation: f"{show_duration(_age_s(operation))} ago"),
            ("ERROR", lambda operation: (operation.get("error") or {}).get("msg")),
        ],
        document["operations"],
        optional=("ERROR", "KIND"),
        names=("OPERATION", "MODELS"),
    )


def format_operation(document: Map) -> str:
    """Return `mlxctl op show`."""
    ended_ms, error = document.get("ended_at_ms"), document.get("error") or {}
    end_s = time.time() if ended_ms is None else ended_ms / 1000
    return format_pairs(
        [
            ("operation", document["op"]),
            ("kind", document["kind"]),
            ("models", ", ".join(document["models"]) or None),
            ("state", document["state"]),
            ("phase", _show_phase(document)),
            ("took" if ended_ms is not None else "runs for", show_duration(end_s - document["started_at_ms"] / 1000)),
            ("error", error.get("msg")),
            *(("try", way) for way in error.get("hint", "").splitlines()),
        ]
    )


def _show_phase(operation: Map) -> str | None:
    if operation["state"] != "running":
        return None
    percent = show_percent(operation)
    return str(operation["phase"]) if percent is None else f"{operation['phase']} ({percent})"


def _age_s(begun: Map) -> float:
    return max(0.0, time.time() - float(begun["started_at_ms"]) / 1000)
