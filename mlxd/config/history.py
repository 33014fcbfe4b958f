"""The last committed versions of the settings file, `history/GENERATION.toml`, with records of where they came from.

A change that did not touch the file (runtime-only) has a record and no version: it can be listed, not gone back to.
Losing the folder loses no setting; what is in it is also what keeps the generation number growing over restarts.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.atomic_file import SystemCalls, sync_folder, write_all

KEPT_VERSIONS = 50
_KEPT_RECORDS = 200
_KEPT_REJECTED = 10
_REJECTED = "rejected-"
_RESERVED = "last-generation"


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one generation.

    Attributes:
        generation: its number.
        time_ms: when it came into force, unix time; None when that is not known.
        source: the operation, `file` for an edit by hand, or `rollback N`; None when that is not known.
        changed: keys of the settings that it changed.
        has_version: whether the file of that generation is kept.
    """

    generation: int
    time_ms: int | None
    source: str | None
    changed: tuple[str, ...]
    has_version: bool


class History:
    """A folder of past versions, named by generation."""

    def __init__(self, folder: Path, calls: SystemCalls | None = None) -> None:
        """Take the folder, which is made with the first version, and the system calls."""
        self._folder = folder
        self._calls = calls if calls is not None else SystemCalls()
        with contextlib.suppress(OSError):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    def generations(self) -> list[int]:
        """Return the generations whose version is kept, oldest first."""
        return self._numbers(".toml")

    def last(self) -> int:
        """Return the number of the last generation that is known of; 0 when there is none."""
        return max([*self.generations(), *self._numbers(".json"), self._reserved()], default=0)

    def reserve(self, generation: int) -> None:
        """Note that *generation* is taken, whether or not it is kept: after a restart no other one has its number.

        The file is written in place and always has the same length, so a full disk takes the number where it takes no
        new file. `last` returns it.

        Raises:
            OSError: it is not noted.
        """
        self._make_folder()
        path = self._folder / _RESERVED
        descriptor = self._calls.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_all(self._calls, descriptor, b"%020d\n" % generation)
            self._calls.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _reserved(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((self._folder / _RESERVED).read_bytes())
        return 0

    def _make_folder(self) -> None:
        """Make the folder, and not the one that it is in: that one was moved away where it is not there."""
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def read(self, generation: int) -> bytes | None:
        """Return the file as it was committed as *generation*; None when it is not kept."""
        try:
            return self._version(generation).read_bytes()
        except OSError:
            return None

    def records(self) -> list[Record]:
        """Return what is known of each generation, oldest first."""
        versions = set(self.generations())
        return [self._record(number, number in versions) for number in sorted(versions | set(self._numbers(".json")))]

    def keep(self, record: Record, data: bytes | None) -> None:
        """Keep *data*, the file as it is now, and its record; without *data* the record alone. The oldest go.

        Raises:
            OSError: it is not kept.
        """
        self._make_folder()
        told = {"time_ms": record.time_ms, "source": record.source, "changed": list(record.changed)}
        if data is not None:
            self._write(self._version(record.generation), data)
        # Not synced: a record that a power cut damages is an unknown one, and each sync delays the reply.
        self._write(self._folder / f"{record.generation}.json", json.dumps(told).encode(), is_synced=False)
        self._prune()

    def keep_rejected(self, generation: int, data: bytes) -> Path:
        """Keep a file that a person wrote and that is about to be replaced; return where.

        Raises:
            OSError: it is not kept, so it must not be replaced.
        """
        self._make_folder()
        path = self._folder / f"{_REJECTED}{generation}.toml"
        number = 1
        while path.exists() and path.read_bytes() != data:
            number += 1
            path = self._folder / f"{_REJECTED}{generation}-{number}.toml"
        self._write(path, data)
        sync_folder(self._calls, self._folder)  # or a power cut leaves neither this nor the file that it was
        found = sorted(self._folder.glob(f"{_REJECTED}*.toml"), key=lambda kept: kept.stat().st_mtime_ns)
        for old in found[:-_KEPT_REJECTED]:
            _remove(old)
        return path

    def _record(self, generation: int, has_version: bool) -> Record:  # noqa: FBT001
        told: Any = None
        path = self._folder / f"{generation}.json"
        with contextlib.suppress(OSError, ValueError):  # it may have been cut off by a power cut
            told = json.loads(path.read_bytes())
        if not isinstance(told, dict):
            told = {}
        changed = told.get("changed")
        return Record(
            generation,
            told.get("time_ms") if isinstance(told.get("time_ms"), int) else None,
            told.get("source") if isinstance(told.get("source"), str) else None,
            tuple(map(str, changed)) if isinstance(changed, list) else (),
            has_version,
        )

    def _prune(self) -> None:
        versions = self.generations()
        for old in versions[:-KEPT_VERSIONS]:
            _remove(self._version(old))
        kept = versions[-KEPT_VERSIONS:]
        records = self._numbers(".json")
        doomed = {number for number in records if kept and number < min(kept)} | set(records[:-_KEPT_RECORDS])
        for old in doomed:
            _remove(self._folder / f"{old}.json")

    def _numbers(self, suffix: str) -> list[int]:
        try:
            names = [path.name for path in self._folder.iterdir()]
        except OSError:
            return []
        stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def _write(self, path: Path, data: bytes, *, is_synced: bool = True) -> None:
        temp = path.with_name(f".{path.name}.tmp")
        descriptor = self._calls.open(str(temp), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            try:
                write_all(self._calls, descriptor, data)
                if is_synced:  # or a power cut leaves an empty version to go back to
                    self._calls.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._calls.replace(str(temp), str(path))
        finally:
            temp.unlink(missing_ok=True)

    def _version(self, generation: int) -> Path:
        return self._folder / f"{generation}.toml"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
