"""Which loads the engine's threads work on at this moment, in a file that outlives the process. Owns `loading.json`.

A mark is written before and after each slice of a load, so it is not forced to the disk: it is there when the process
dies, and may be missing when the whole machine does. `crash.py` reads it to tell the load that a daemon died in from
those that only waited.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_MOST_BYTES = 2**20
_log = logging.getLogger(__name__)


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

        The device thread counts before the threads that read folders: one of those may hang for ever on a dead disk.
        """
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            left = os.pread(self._fd, _MOST_BYTES, 0)
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


def _at_work(data: bytes, boot_id: str | None) -> frozenset[str]:
    """Return what the marks of that run say; nothing when they are of another, or cut off."""
    try:
        marks = json.loads(data)
        if marks["boot_id"] != boot_id:
            return frozenset()
        return frozenset(str(model_id) for model_id in marks["on_device"] or marks["reading"])
    except (ValueError, TypeError, KeyError):
        return frozenset()
