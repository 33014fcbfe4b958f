"""A settings store over a temp folder, with an owner and a listener that record."""

import asyncio
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxd.atomic_file import SystemCalls
from mlxd.config import CommitResult, Edit, Participant, SettingsStore, StoreEvent, Terms
from mlxd.protocol.errors import SettingsError
from mlxd.protocol.key import parse_path
from mlxd.protocol.settings import Settings

USABLE_BYTES = 32 * 10**9
TEXT = '# mine\n[pool]\nmemory = "60%"  # of all\n'
# Every system call of a commit, in order. The first look at the file, the temp file, the second look, the rename; then
# the folder, the version in the history, and its record.
_READ, _WRITE = ["open", "read", "read"], ["open", "write", "fsync", "replace"]
COMMIT_CALLS = [
    *_READ,
    "open",
    "fchmod",
    "write",
    "fsync",
    *_READ,
    "replace",
    "open",
    "fsync",
    *_WRITE,
    "open",
    "write",
    "replace",
]
FIRST_OF_WRITING, RENAME, FIRST_OF_HISTORY = 3, 10, 13


class Owner:
    """Owns live state: records what it was asked, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refusal: SettingsError | None = None

    def check(self, new: Settings, *, force: bool) -> list[str]:
        self.calls.append(f"check force={force}")
        if self.refusal is not None and not force:
            raise self.refusal
        return ["forced"] if self.refusal is not None else []

    def plan(self, new: Settings) -> Any:
        self.calls.append("plan")
        return {"memory": new.pool.memory}

    def apply(self, new: Settings) -> Any:
        self.calls.append("apply")
        return {"memory": new.pool.memory}


class Binder:
    """Prepares, and records what becomes of its work."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refusal: SettingsError | None = None

    async def prepare(self, new: Settings) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append("prepare")

    def abandon(self) -> None:
        self.calls.append("abandon")


@dataclasses.dataclass
class StoreFixture:
    """A store with one owner and one listener, and its file."""

    path: Path
    store: SettingsStore
    owner: Owner
    events: list[StoreEvent]

    @property
    def problem(self) -> str:
        """What is wrong with the file, in words; empty when nothing is."""
        return "" if self.store.problem is None else self.store.problem.message

    def attach(self, name: str, owner: Owner, binder: Binder | None = None) -> None:
        """Have an owner follow, whose methods a test may replace, and a binder prepare for it."""

        def check(new: Settings, *, force: bool) -> list[str]:
            return owner.check(new, force=force)

        def apply(new: Settings) -> Any:
            return owner.apply(new)

        async def prepare(new: Settings) -> None:
            if binder is not None:
                await binder.prepare(new)

        abandon = None if binder is None else binder.abandon
        self.store.participants.attach(name, Participant(None, check, owner.plan, prepare, abandon, apply))

    async def set(self, key: str, value: Any, **more: Any) -> CommitResult:
        """Commit one edit."""
        async with self.store.turn:
            return await self.store.commit([Edit(parse_path(key), value)], Terms("test", **more))


async def turn(seconds: float) -> None:
    """Wait for an editor that is writing: one turn of the loop."""
    await asyncio.sleep(0)


MakeStore = Callable[..., StoreFixture]


def assert_untouched(fixture: StoreFixture) -> None:
    """Check that file, snapshot and generation are what they were, and that no temp file is left."""
    assert fixture.path.read_text() == TEXT
    assert fixture.store.current.pool.memory == 192 * 10**8
    assert fixture.store.generation == 1
    assert "apply" not in fixture.owner.calls
    assert [path.name for path in fixture.path.parent.iterdir() if path.name.startswith(".")] == []


class Faults:
    """System calls that are seen, and that fail when they are told to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._number: int | None = None
        self._names: tuple[str, ...] = ()
        self._code = 0
        self._before: Callable[[], object] | None = None
        real = SystemCalls()
        self.calls = SystemCalls(
            **{item.name: self._watched(item.name, getattr(real, item.name)) for item in dataclasses.fields(real)}
        )

    def fail(self, number: int, code: int) -> None:
        """Have the call of this number fail, counted from now, once."""
        self.seen.clear()
        self._number, self._code = number, code

    def before(self, number: int, act: Callable[[], object]) -> None:
        """Have *act* done before the call of this number, counted from now; never for a negative one."""
        self.seen.clear()
        self._number, self._before = (number, act) if number >= 0 else (None, None)

    def fail_always(self, code: int, *names: str) -> None:
        """Have each call of these names fail."""
        self._names, self._code = names, code

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            is_due = len(self.seen) == self._number
            self.seen.append(name)
            if is_due:
                self._number = None
            if is_due and self._before is not None:
                act, self._before = self._before, None
                act()
            elif is_due or name in self._names:
                raise OSError(self._code, os.strerror(self._code))
            return real(*arguments)

        return call
