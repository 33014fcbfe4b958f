"""Keys of providers. What goes in never comes out again."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, flag, text

_NAME = text("Name of the key.")

TABLE = (
    Operation(
        "key.set",
        "Keep a provider's key: in the keychain where there is one, else in a file that only its owner may read.",
        {
            "name": _NAME,
            "secret": text("The key."),
            "provider": text("A provider that is to use it from now on.", required=False),
        },
        mutates=True,
        commits=True,
    ),
    Operation("key.list", "Where the keys of providers are; never what they are.", PAGE),
    Operation(
        "key.remove",
        "Forget a key that was kept.",
        {"name": _NAME, "force": flag("Also while a provider uses it.")},
        mutates=True,
        plans=True,
    ),
)
