"""Keys that clients on TCP need."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, Param, ParamType, text

TABLE = (
    Operation(
        "apikey.create",
        "Make an API key; from the first on, HTTP requests need one. Only the reply has the key.",
        {
            "name": text("Name of the key."),
            "models": Param(ParamType.TEXTS, "Globs of the models it may use; all when left out.", required=False),
            "rate": text("Most requests: N/s, N/min, N/h or N/d; no bound when left out.", required=False),
        },
        mutates=True,
        secrets=frozenset({"key"}),
    ),
    Operation("apikey.list", "The API keys, without what is secret.", PAGE),
    Operation("apikey.revoke", "Refuse an API key from now on.", {"name": text("Its name.")}, mutates=True),
)
