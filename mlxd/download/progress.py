"""How the download program tells what it does: JSON lines for mlxctl, or lines for a person.

The JSON lines, one object each:
    {"event": "progress", "phase": "downloading", "done": 1, "total": 2}    total is null while it is not known
    {"event": "note", "msg": "..."}                                         something worth knowing, not an error
    {"event": "done", "id": "...", "path": "...", "already": false}         the last line of a success
    {"event": "error", "code": "...", "msg": "...", "hint": "...", "exit": 6}   the last line of a failure
`phase` is one of PHASES; `done` and `total` count bytes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

from mlxd.protocol.errors import MlxdError
from mlxd.protocol.units import show_bytes

PHASES = ("downloading", "checking", "unpacking", "converting")
# Ten lines a second are smooth for the eye and nothing for a pipe.
INTERVAL_S = 0.1


class Reporter(Protocol):
    """Where progress goes; may be called from several threads."""

    def progress(self, phase: str, done_bytes: int, total_bytes: int | None) -> None:
        """Say how far the phase is."""

    def note(self, message: str) -> None:
        """Say something worth knowing."""

    def done(self, model_id: str, path: Path, *, already: bool) -> None:
        """Say that the model is there; *already*: it was before."""

    def error(self, error: MlxdError) -> None:
        """Say why there is none."""


class _Throttle:
    """Lets the first, the last and a few of the calls in between through."""

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._phase: str | None = None
        self._next_s = 0.0

    def lets_through(self, phase: str, done_bytes: int, total_bytes: int | None) -> bool:
        now_s = self._clock()
        if phase == self._phase and done_bytes != total_bytes and now_s < self._next_s:
            return False
        self._phase = phase
        self._next_s = now_s + self._interval_s
        return True


class JsonReporter:
    """One JSON object a line."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to *stream*, flushed line by line."""
        self._stream = stream
        self._throttle = _Throttle(INTERVAL_S, clock)
        self._lock = threading.Lock()

    def progress(self, phase: str, done_bytes: int, total_bytes: int | None) -> None:
        """Write a progress line, at most ten a second."""
        with self._lock:
            if self._throttle.lets_through(phase, done_bytes, total_bytes):
                self._write({"event": "progress", "phase": phase, "done": done_bytes, "total": total_bytes})

    def note(self, message: str) -> None:
        """Write a note."""
        with self._lock:
            self._write({"event": "note", "msg": message})

    def done(self, model_id: str, path: Path, *, already: bool) -> None:
        """Write the last line of a success."""
        with self._lock:
            self._write({"event": "done", "id": model_id, "path": str(path), "already": already})

    def error(self, error: MlxdError) -> None:
        """Write the last line of a failure."""
        with self._lock:
            self._write({"event": "error", **error.to_wire()})

    def _write(self, event: dict[str, Any]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


class PlainReporter:
    """Words: one line that moves on a terminal, a line now and then elsewhere."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to *stream*; whether it is a terminal decides how."""
        self._stream = stream
        self._moves = stream.isatty()
        self._throttle = _Throttle(INTERVAL_S if self._moves else 5.0, clock)
        self._lock = threading.Lock()
        self._unfinished: str | None = None  # the phase whose line has no end yet

    def progress(self, phase: str, done_bytes: int, total_bytes: int | None) -> None:
        """Show the phase with its bytes and percent."""
        with self._lock:
            if not self._throttle.lets_through(phase, done_bytes, total_bytes):
                return
            text = f"{phase}  {_amount(done_bytes, total_bytes)}"
            if not self._moves:
                self._stream.write(text + "\n")
            else:
                if self._unfinished not in (None, phase):
                    self._stream.write("\n")
                self._stream.write(f"\r\x1b[K{text}")
                self._unfinished = phase
            self._stream.flush()

    def note(self, message: str) -> None:
        """Show a note on a line of its own."""
        self._line(f"note: {message}")

    def done(self, model_id: str, path: Path, *, already: bool) -> None:
        """Show where the model is."""
        self._line(f"{model_id} is {'already there' if already else 'ready'}: {path}")

    def error(self, error: MlxdError) -> None:
        """Show what happened, what to do next, and the code."""
        self._line(f"error: {error.message}")
        if error.hint is not None:
            self._line(f"  try: {error.hint}")
        self._line(f"  code: {error.code}")

    def _line(self, text: str) -> None:
        with self._lock:
            start = "\n" if self._unfinished is not None else ""
            self._unfinished = None
            self._stream.write(f"{start}{text}\n")
            self._stream.flush()


def _amount(done_bytes: int, total_bytes: int | None) -> str:
    if total_bytes is None or total_bytes == 0:
        return show_bytes(done_bytes)
    percent = 100 * done_bytes // total_bytes
    return f"{percent:3d} %  {done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"
