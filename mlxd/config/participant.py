"""What goes into the settings store and comes out of it: edits, results, events, and who takes part in a commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlxd.protocol.settings import Settings


@dataclass(frozen=True, slots=True)
class Edit:
    """Set *path* to *value*, as a person or TOML writes it; None unsets it, also a keyed table's entry as a whole."""

    path: tuple[str, ...]
    value: Any


# Edits that depend on what they change (an element of a list) are made from the settings that the commit begins with.
Edits = Sequence[Edit] | Callable[[Settings], Sequence[Edit]]


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit did, or with `dry_run` would do.

    Attributes:
        generation: of the settings now.
        changed: {key, old, new}, as written in the file; empty when nothing was to be done and nothing was written.
        warnings: sentences, or `not_durable` / `no_history` with the cause, when the disk failed after the commit.
        effects: participant → what it planned (dry run) or began.
        dry_run: nothing was changed.
    """

    generation: int
    changed: list[dict[str, Any]]
    warnings: list[str]
    effects: Mapping[str, Any]
    dry_run: bool = False


class Participant(Protocol):
    """An owner of live state that follows the settings. Called on the event loop."""

    def check(self, new: Settings, *, force: bool) -> list[str]:
        """Return warnings, or raise SettingsError to refuse *new*."""

    def plan(self, old: Settings, new: Settings) -> Any:
        """Return what `apply` would begin now."""

    def apply(self, old: Settings, new: Settings) -> Any:
        """Follow *new*, which is the store's snapshot already; return what began. Cannot fail."""


class Preparer(Protocol):
    """Fallible work of a participant that is done on the side, before the commit: binding a port."""

    async def prepare(self, old: Settings, new: Settings) -> None:
        """Do it, or raise SettingsError to refuse *new*; followed by `apply` or by `abandon`."""

    def abandon(self) -> None:
        """Undo what `prepare` did: the commit failed."""


@dataclass(frozen=True, slots=True)
class StoreEvent:
    """`config.changed` {gen, source, changed, warnings}, `config.file_invalid` {msg} or `config.file_mended` {}."""

    kind: str
    data: Mapping[str, Any]
