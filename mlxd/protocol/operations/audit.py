"""The request log."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, count, flag, text

_TIMES = {
    "since_ms": count("Begun at this time or later, unix time."),
    "until_ms": count("Begun before this time, unix time."),
}
_FILTERS = {
    "model": text("That answered, or was asked last.", required=False),
    "asked": text("As the client called the model.", required=False),
    "route": text("local or cloud.", required=False),
    "status": text("ok, error, cancelled or timeout.", required=False),
    "code": text("Of its error.", required=False),
    "endpoint": text("Path under /v1.", required=False),
    "target": text("PROVIDER/MODEL.", required=False),
    "key": text("Id of the client's API key.", required=False),
    "request": text("Id of the request.", required=False),
    **_TIMES,
}
_ROWS = {
    **PAGE,
    "limit": count("Most rows to answer with, from 1 to 1000; 100 when left out."),
    "oldest_first": flag("The oldest first instead of the newest."),
}

TABLE = (
    Operation("audit.list", "Requests that have ended.", {**_FILTERS, **_ROWS}),
    Operation("audit.changes", "Changes of settings and of what runs.", {**_TIMES, **_ROWS}),
    Operation("audit.stats", "How many requests ended how, how long they took, what they used.", _FILTERS),
)
