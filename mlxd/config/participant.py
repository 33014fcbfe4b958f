"""What goes into the settings store and comes out of it: edits, results, events, and who takes part in a commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from mlxd.protocol.settings import Settings


class Revert(Enum):
    """In the place of an edit's value: the file's value holds again. Only for what is runtime-only."""

    TO_FILE = "file"


@dataclass(frozen=True, slots=True)
class Edit:
    """Set *path* to *value*, as a person or TOML writes it; None unsets it, also a keyed table's entry as a whole."""

    path: tuple[str, ...]
    value: Any


# Edits that depend on what they change (an element of a list) are made from the settings that the commit begins with.
Edits = Sequence[Edit] | Callable[[Settings], Sequence[Edit]]


@dataclass(frozen=True, slots=True)
class Terms:
    """How a change is asked for.

    Attributes:
        source: who asks, for the history and the event.
        if_gen: refuse when the settings are of another generation.
        dry_run: check and plan, and change nothing.
        force: passed on to the participants' checks.
        persist: False leaves the file alone: the change is lost with the process.
        uid: of the process that asks over the control socket, for the event.
        pid: likewise.
    """

    source: str
    if_gen: int | None = None
    dry_run: bool = False
    force: bool = False
    persist: bool = True
    uid: int | None = None
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What a commit did, or with `dry_run` would do.

    Attributes:
        generation: of the settings now.
        changed: {key, old, new}, as written in the file; empty when nothing was to be done and nothing was written.
        warnings: sentences, or `not_durable` / `no_history` with the cause, when the disk failed after the commit.
        effects: participant → what it planned (dry run) or began.
        dry_run: nothing was changed.
        is_runtime_only: what was asked for is not in the file.
        is_rewritten: the file is another one now.
    """

    generation: int
    changed: list[dict[str, Any]]
    warnings: list[str]
    effects: Mapping[str, Any]
    dry_run: bool = False
    is_runtime_only: bool = False
    is_rewritten: bool = False


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
    """What the store tells its listeners.

    Attributes:
        kind: `config.changed`, `config.file_invalid` or `config.file_mended`.
        data: {gen, source, changed, warnings, uid, pid, runtime_only}, {msg} or {}.
    """

    kind: str
    data: Mapping[str, Any]
