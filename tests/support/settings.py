"""A settings store over a temp folder, with an owner and a listener that record."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxd.config import CommitResult, Edit, SettingsStore, StoreEvent
from mlxd.config.file import SystemCalls
from mlxd.protocol.errors import SettingsError
from mlxd.protocol.key import parse_path
from mlxd.protocol.kind import Machine
from mlxd.protocol.settings import Settings

MACHINE = Machine(usable_bytes=32 * 10**9)
TEXT = '# mine\n[pool]\nmemory = "60%"  # of all\n'


class Owner:
    """A participant that records what it was asked, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refusal: SettingsError | None = None

    def check(self, new: Settings, *, force: bool) -> list[str]:
        self.calls.append(f"check force={force}")
        if self.refusal is not None and not force:
            raise self.refusal
        return ["forced"] if self.refusal is not None else []

    def plan(self, old: Settings, new: Settings) -> Any:
        self.calls.append("plan")
        return {"memory": new.pool.memory}

    def apply(self, old: Settings, new: Settings) -> Any:
        self.calls.append("apply")
        return {"memory": new.pool.memory, "was": old.pool.memory}


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

    async def set(self, key: str, value: Any, **more: Any) -> CommitResult:
        """Commit one edit."""
        return await self.store.commit([Edit(parse_path(key), value)], source="test", **more)


MakeStore = Callable[..., StoreFixture]


class Binder:
    """A preparer that records what becomes of its work."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refusal: SettingsError | None = None

    async def prepare(self, old: Settings, new: Settings) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append("prepare")

    def abandon(self) -> None:
        self.calls.append("abandon")


def assert_untouched(fixture: StoreFixture) -> None:
    """Check that file, snapshot and generation are what they were, and that no temp file is left."""
    assert fixture.path.read_text() == TEXT
    assert fixture.store.current.pool.memory == 192 * 10**8
    assert fixture.store.generation == 1
    assert "apply" not in fixture.owner.calls
    assert [path.name for path in fixture.path.parent.iterdir() if path.name.startswith(".")] == []


def failing(name: str, code: int) -> SystemCalls:
    """Return system calls of which one fails with *code*."""

    def fail(*arguments: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return dataclasses.replace(SystemCalls(), **{name: fail})
