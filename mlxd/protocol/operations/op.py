"""What goes on after its reply."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, count, text

TABLE = (
    Operation("op.list", "Operations that run, and the last that ended.", PAGE),
    Operation("op.show", "One operation.", {"op": text("Operation id.")}),
    Operation(
        "op.wait",
        "Answer when the operation has ended or the timeout has passed, with `prog` frames until then.",
        {"op": text("Operation id."), "timeout_ms": count("Longest wait; without end when left out.")},
    ),
    Operation("op.cancel", "Give an operation up.", {"op": text("Operation id.")}, mutates=True, at_once=True),
)
