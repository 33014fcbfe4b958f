"""The settings file and the one owner of the settings: `SettingsStore`. Imports the protocol only, and no owner."""

from mlxd.config.participant import CommitResult, Participant, StoreEvent, Terms
from mlxd.config.state import Edit, Edits, Revert
from mlxd.config.store import SettingsStore

__all__ = [
    "CommitResult",
    "Edit",
    "Edits",
    "Participant",
    "Revert",
    "SettingsStore",
    "StoreEvent",
    "Terms",
]
