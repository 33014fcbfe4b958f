"""The owners of live state as the store sees them: they check, plan, prepare and apply. It knows none by name."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from mlxd.config.participant import Participant, Preparer
from mlxd.protocol.settings import Settings

_log = logging.getLogger(__name__)


class Owners:
    """All participants and preparers, in the order in which they were attached."""

    def __init__(self, validate: Callable[[Settings], object] | None) -> None:
        """Take the check of settings that no daemon can start with."""
        self._validate = validate
        self._participants: dict[str, Participant] = {}
        self._preparers: list[Preparer] = []
        self._stopped_at: dict[str, Settings] = {}

    def attach(self, name: str, participant: Participant, preparer: Preparer | None) -> None:
        """Have one more follow the settings."""
        self._participants[name] = participant
        if preparer is not None:
            self._preparers.append(preparer)

    def validate(self, settings: Settings) -> None:
        """Raise SettingsError for settings that no daemon can start with."""
        if self._validate is not None:
            self._validate(settings)

    def check(self, settings: Settings, *, force: bool) -> list[str]:
        """Return the warnings of all, or raise the first refusal."""
        return [line for part in self._participants.values() for line in part.check(settings, force=force)]

    def plan(self, old: Settings, new: Settings) -> dict[str, Any]:
        """Return what each would begin."""
        return {name: part.plan(old, new) for name, part in self._participants.items()}

    def apply(self, old: Settings, new: Settings) -> Mapping[str, Any]:
        """Have each follow; return what each began.

        The settings are in force already, so one that raises keeps no other from following. It is in `problems` until
        a later change succeeds, which begins where this participant stopped.
        """
        effects: dict[str, Any] = {}
        for name, part in self._participants.items():
            since = self._stopped_at.get(name, old)
            try:
                effects[name] = part.apply(since, new)
            except Exception:  # noqa: BLE001  (a mistake of ours in one owner, and the settings hold for all)
                _log.exception("%s has not applied the settings", name)
                self._stopped_at[name] = since
            else:
                self._stopped_at.pop(name, None)
        return effects

    def problems(self) -> list[str]:
        """Return a sentence for each participant that has not applied the settings in force."""
        return [
            f"{name} has not applied the settings in force: it failed inside of mlxd, whose log has the details; to"
            " apply them: mlxctl restart"
            for name in self._stopped_at
        ]

    @asynccontextmanager
    async def prepared(self, old: Settings, new: Settings) -> AsyncIterator[Callable[[], None]]:
        """Have the fallible work of all done around a commit; it is undone unless the commit calls what it is given."""
        done: list[Preparer] = []

        try:
            for preparer in self._preparers:
                await preparer.prepare(old, new)
                done.append(preparer)
            yield done.clear
        finally:
            for preparer in done:
                preparer.abandon()
