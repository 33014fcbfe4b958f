"""The pool: memory and residents."""

from __future__ import annotations

from mlxd.protocol.operations.row import Operation

TABLE = (Operation("pool.show", "Memory, limits, residents and the queue."),)
