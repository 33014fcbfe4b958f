"""Requests that are being answered."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, text

_REQUEST = text("Request id; a client may have used one for several.")

TABLE = (
    Operation("request.list", "The requests that are being answered, oldest first.", PAGE),
    Operation("request.show", "One of them, and what it waits for.", {"request": _REQUEST}),
    Operation("request.cancel", "End a request with an error.", {"request": _REQUEST}, mutates=True, at_once=True),
)
