"""The input and output of a commit of settings, and the interface of those who take part in it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlxd.protocol.settings import Settings

_log = logging.getLogger(__name__)


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


class Check(Protocol):
    """Judges settings before they are committed."""

    def __call__(self, new: Settings, *, force: bool) -> list[str]:
        """Return warnings, or raise SettingsError to refuse *new*."""


@dataclass(frozen=True, slots=True)
class Participant:
    """An owner of live state that follows the settings. Called on the event loop, in the order of the attributes.

    Attributes:
        groups: the groups of settings that it follows, and is left alone while they stay; None: it is told of every
            commit.
        check: judges new settings.
        plan: returns what `apply` would begin now; for dry runs.
        prepare: does fallible work on the side (binds a port), or raises SettingsError to refuse.
        abandon: undoes what `prepare` did: the commit failed.
        apply: follows the new settings, which the store has already, and returns what began. Cannot fail.
    """

    groups: Sequence[str] | None = None
    check: Check | None = None
    plan: Callable[[Settings], Any] | None = None
    prepare: Callable[[Settings], Awaitable[object]] | None = None
    abandon: Callable[[], object] | None = None
    apply: Callable[[Settings], Any] | None = None


class Participants:
    """All participants, in the order in which they were attached."""

    def __init__(self) -> None:
        """Begin with none."""
        self._parts: dict[str, Participant] = {}
        self._unapplied: set[str] = set()  # names of those that failed

    def attach(self, name: str, part: Participant) -> None:
        """Have one more follow the settings."""
        self._parts[name] = part

    def concerned(self, old: Settings, new: Settings) -> dict[str, Participant]:
        """Return those by name whose groups differ, and those that have not applied what came before."""
        return {
            name: part
            for name, part in self._parts.items()
            if part.groups is None
            or name in self._unapplied
            or any(getattr(old, group) != getattr(new, group) for group in part.groups)
        }

    def check(self, old: Settings, new: Settings, *, force: bool) -> list[str]:
        """Return the warnings of all, or raise the first refusal."""
        checks = [part.check for part in self.concerned(old, new).values() if part.check is not None]
        return [line for check in checks for line in check(new, force=force)]

    def plan(self, old: Settings, new: Settings) -> dict[str, Any]:
        """Return what each would begin."""
        return {name: part.plan(new) for name, part in self.concerned(old, new).items() if part.plan is not None}

    async def prepare(self, old: Settings, new: Settings, prepared: list[Participant]) -> None:
        """Have the fallible work of each done; who has done it is added to *prepared*."""
        for part in self.concerned(old, new).values():
            if part.prepare is not None:
                await part.prepare(new)
                prepared.append(part)

    def apply(self, old: Settings, new: Settings) -> dict[str, Any]:
        """Have each follow; return what each began.

        The settings are in force already, so one that raises keeps no other from following. It is in `unapplied` until
        a later change succeeds.
        """
        began: dict[str, Any] = {}
        for name, part in self.concerned(old, new).items():
            try:
                if part.apply is not None:
                    began[name] = part.apply(new)
            except Exception:  # noqa: BLE001  (a mistake of ours in one owner, and the settings hold for all)
                _log.exception("%s has not applied the settings", name)
                self._unapplied.add(name)
            else:
                self._unapplied.discard(name)
        return began

    @property
    def unapplied(self) -> list[str]:
        """A sentence for each that has not applied the settings in force."""
        return [
            f"{name} has not applied the settings in force: it failed inside of mlxd, whose log has the details; to"
            " apply them: mlxctl restart"
            for name in self._parts
            if name in self._unapplied
        ]


@dataclass(frozen=True, slots=True)
class StoreEvent:
    """What the store tells its listeners.

    Attributes:
        kind: `config.changed`, `config.file_invalid` or `config.file_mended`.
        data: {gen, source, changed, warnings, uid, pid, runtime_only}, {msg} or {}.
    """

    kind: str
    data: Mapping[str, Any]
