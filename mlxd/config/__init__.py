"""The settings file and the one owner of the settings: `SettingsStore`. Imports the protocol only, and no owner."""

from mlxd.config.participant import CommitResult, Edit, Edits, Participant, Preparer, Revert, StoreEvent, Terms
from mlxd.config.store import SettingsStore

__all__ = [
    "CommitResult",
    "Edit",
    "Edits",
    "Participant",
    "Preparer",
    "Revert",
    "SettingsStore",
    "StoreEvent",
    "Terms",
]
