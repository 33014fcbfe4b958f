"""The prompt cache."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation

TABLE = (Operation("cache.rules", "The noise rules: what each removes from prompts, and whether it is on.", PAGE),)
