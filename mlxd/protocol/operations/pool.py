"""The pool: memory and residents."""

from __future__ import annotations

from mlxd.protocol.operations.row import Operation, flag, text

TABLE = (
    Operation("pool.show", "Memory, limits, residents and the queue."),
    Operation(
        "pool.simulate",
        "Say what a load, or another limit, would do; change nothing.",
        {
            "load": text("Model id.", required=False),
            "memory": text("A memory limit, as pool.memory takes it.", required=False),
            "max_models": text("A number of models, as pool.max_models takes it.", required=False),
        },
    ),
    Operation(
        "pool.evict",
        "Let a model go, or all idle ones; what waits for it goes on waiting.",
        {
            "model": text("Model id; all idle models when left out.", required=False),
            "force": flag("Let a busy model go as well, when its requests have ended."),
        },
        mutates=True,
        plans=True,
    ),
)
