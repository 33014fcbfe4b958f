"""Remembers across restarts that a daemon died, and which load it died in. Owns `state.json` and `loading.json`.

A load is noted on the disk before it begins and taken off when it has ended, well or not. Of the notes that the next
daemon finds, only loads that the engine was at work on count (`LoadMarks`): one that waited for its turn is not to
blame. After `MOST_CRASHES` such in a row the model is refused until somebody resets it or its files change, so that a
daemon that is always started again does not die of one model forever.

The marks of what the engine works on are written before and after each slice of a load, so they are not forced to the
disk: they are there when the process dies, and may be missing when the whole machine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlxd.atomic_file import AtomicFile
from mlxd.catalog import ModelEntry
from mlxd.protocol.errors import LoadFailed
from mlxd.protocol.units import count

MOST_CRASHES = 2
_HOUR_MS = 3_600_000
# Of a daemon that is started again every few seconds, the last ones tell enough.
_KEPT_CRASHES = 100
_SCHEMA = 1
_MOST_MARK_BYTES = 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CrashedLoad:
    """A model whose last load was the end of a daemon."""

    files: str  # identifies the files that were loaded
    times: int  # in a row
    at_ms: int  # when the last was noticed, unix time


@dataclass(slots=True)
class _State:
    """What stands in the file."""

    boot_id: str | None = None  # of the daemon that runs; None after an orderly end
    loading: dict[str, str] = field(default_factory=dict)  # model id → its files
    crashed_loads: dict[str, CrashedLoad] = field(default_factory=dict)
    crashes_ms: list[int] = field(default_factory=list)  # when they were noticed, oldest first

    @classmethod
    def parse(cls, data: bytes) -> _State:
        """Return the state; ValueError, TypeError or KeyError when it is none."""
        read: dict[str, Any] = json.loads(data)
        return cls(
            boot_id=read["boot_id"],
            loading={str(model_id): str(files) for model_id, files in read["loading"].items()},
            crashed_loads={
                str(model_id): CrashedLoad(str(load["files"]), int(load["times"]), int(load["at_ms"]))
                for model_id, load in read["crashed_loads"].items()
            },
            crashes_ms=[int(at_ms) for at_ms in read["crashes_ms"]],
        )

    def render(self) -> bytes:
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1).encode()


class LoadMarks:
    """The marks of this daemon, and what those of the one before say. Threads may mark at the same time."""

    def __init__(self, path: Path, boot_id: str) -> None:
        """Take the file and the name of this run; nothing is written before `open`."""
        self.boot_id = boot_id
        self._path = path
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._length = 0
        self._on_device: list[str] = []
        self._reading: list[str] = []

    def open(self, before: str | None) -> frozenset[str]:
        """Begin to mark; return the models on whose loads the run *before* was at work when it died. Blocks.

        The device thread counts before the threads that read folders: one of those may hang forever on a dead disk.
        """
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            left = os.pread(self._fd, _MOST_MARK_BYTES, 0)
            os.ftruncate(self._fd, 0)
        except OSError as error:
            # Serving goes first: a load that kills the daemon would not be recognised, no more than that.
            _log.warning("%s cannot be written: %s", self._path, error.strerror)
            return frozenset()
        return _at_work(left, before)

    @contextlib.contextmanager
    def working_on(self, model_id: str, *, on_device: bool) -> Iterator[None]:
        """Have it marked that the calling thread works on the load of a model. Implements `WorkingOn`."""
        at_work = self._on_device if on_device else self._reading
        with self._lock:
            at_work.append(model_id)
            self._write()
        try:
            yield
        finally:
            with self._lock:
                at_work.remove(model_id)
                self._write()

    def close(self) -> None:
        """Mark nothing any more."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None

    def _write(self) -> None:
        if self._fd is None:
            return
        marks = {"boot_id": self.boot_id, "on_device": self._on_device, "reading": self._reading}
        data = json.dumps(marks).encode().ljust(self._length)  # over all of the marks before
        self._length = len(data)
        with contextlib.suppress(OSError):  # a full disk; `state.json` says so in the log
            os.pwrite(self._fd, data, 0)


class CrashLog:
    """The notes of this daemon, and what those of the ones before it say. Used on the event loop; writes elsewhere."""

    def __init__(self, file: AtomicFile, marks: LoadMarks, now: Callable[[], float] = time.time) -> None:
        self._file = file
        self.marks = marks
        self._now = now
        self._state = _State(boot_id=marks.boot_id)
        self._version = 0
        self._saved = 0
        self._saving = asyncio.Lock()
        self._saves: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Read what the daemon before left, and note that this one runs."""
        before = await asyncio.to_thread(self._read)
        at_work = await asyncio.to_thread(self.marks.open, before.boot_id)
        now_ms = self._now_ms()
        self._state.crashed_loads = before.crashed_loads
        self._state.crashes_ms = before.crashes_ms[-_KEPT_CRASHES:]
        if before.boot_id is not None:
            self._state.crashes_ms.append(now_ms)
            _log.error("the daemon before this one died: it was killed, or crashed")
            for model_id in sorted(at_work & before.loading.keys()):
                self._count(model_id, before.loading[model_id], now_ms)
        self._version += 1
        await self._save()

    async def close(self, *, has_failed: bool = False) -> None:
        """Note that this daemon ended, in order unless it *has_failed*; no load of it is to blame for anything."""
        self.marks.close()
        if not has_failed:
            self._state.boot_id = None
        self._state.loading.clear()
        self._version += 1
        await self._save()
        await asyncio.gather(*self._saves)

    async def begin_load(self, entry: ModelEntry) -> None:
        """Note that the model is about to be loaded; returns when the disk has it.

        Raises:
            LoadFailed: daemons died of it.
        """
        refusal = self.refusal(entry)
        if refusal is not None:
            raise refusal
        self._state.loading[entry.id] = _identify(entry)
        self._version += 1
        await self._save()

    def end_load(self, model_id: str) -> None:
        """Note that the load has ended, and that the daemon lives; nobody waits for the disk."""
        self._state.loading.pop(model_id, None)
        self._state.crashed_loads.pop(model_id, None)
        self._version += 1
        task = asyncio.get_running_loop().create_task(self._save())
        self._saves.add(task)
        task.add_done_callback(self._saves.discard)

    @contextlib.asynccontextmanager
    async def noted(self, entry: ModelEntry) -> AsyncIterator[None]:
        """Have a load of the model noted from its beginning to its end.

        Raises:
            LoadFailed: daemons died of it.
        """
        await self.begin_load(entry)
        try:
            yield
        finally:
            self.end_load(entry.id)

    def refusal(self, entry: ModelEntry) -> LoadFailed | None:
        """Return why the model must not be loaded; None when it may."""
        crashed = self._state.crashed_loads.get(entry.id)
        if crashed is None or crashed.times < MOST_CRASHES or crashed.files != _identify(entry):
            return None
        return LoadFailed(
            f"{entry.id} is not loaded: the daemon died while it loaded it, {count(crashed.times, 'time')} in a row;"
            " it is tried again when its files change or it is reset",
            hint=f"mlxctl logs\nmlxctl model reset {entry.id}",
            data={"crashes": crashed.times, "last_at_ms": crashed.at_ms},
        )

    async def reset(self, model_id: str) -> bool:
        """Let the model be tried again, once this is on the disk; False when nothing was held against it."""
        if self._state.crashed_loads.pop(model_id, None) is None:
            return False
        self._version += 1
        await self._save()
        return True

    def status(self) -> Mapping[str, Any]:
        """Return how often daemons died in the last hour, and the loads that they died in."""
        recent = [at_ms for at_ms in self._state.crashes_ms if at_ms > self._now_ms() - _HOUR_MS]
        loads = sorted(self._state.crashed_loads.items())
        return {
            "last_hour": len(recent),
            "last_at_ms": recent[-1] if recent else None,
            "loads": [{"model": model_id, "times": load.times, "at_ms": load.at_ms} for model_id, load in loads],
        }

    def _count(self, model_id: str, files: str, now_ms: int) -> None:
        crashed = self._state.crashed_loads.get(model_id)
        times = crashed.times + 1 if crashed is not None and crashed.files == files else 1
        self._state.crashed_loads[model_id] = CrashedLoad(files, times, now_ms)
        what_now = "it is not loaded any more" if times >= MOST_CRASHES else "it is tried once more"
        _log.error("it died while it loaded %s, %s in a row: %s", model_id, count(times, "time"), what_now)

    def _now_ms(self) -> int:
        return int(self._now() * 1000)

    def _read(self) -> _State:
        """Return what the file says; an empty state when there is none, or none that can be read."""
        self._file.remove_leftovers()
        try:
            data = self._file.read().data
            return _State() if data is None else _State.parse(data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _log.warning("%s cannot be read and is begun anew: %s", self._file.path, error)
            return _State()

    async def _save(self) -> None:
        """Have the present state, or a later one, on the disk; changes that wait meanwhile go in one write."""
        wanted = self._version
        async with self._saving:
            if self._saved >= wanted:
                return
            version, data = self._version, self._state.render()
            try:
                await asyncio.to_thread(self._file.replace, data)
            except OSError as error:
                # Serving goes first: a load that kills the daemon would not be recognised, no more than that.
                _log.warning("%s cannot be written: %s", self._file.path, error.strerror)
            self._saved = version


def _identify(entry: ModelEntry) -> str:
    """Return what changes when the files of the model do."""
    return hashlib.sha256(repr((str(entry.path), entry.signature)).encode()).hexdigest()[:16]


def _at_work(data: bytes, boot_id: str | None) -> frozenset[str]:
    """Return what the marks of that run say; nothing when they are of another, or cut off."""
    try:
        marks = json.loads(data)
        if marks["boot_id"] != boot_id:
            return frozenset()
        return frozenset(str(model_id) for model_id in marks["on_device"] or marks["reading"])
    except (ValueError, TypeError, KeyError):
        return frozenset()
