"""Report the progress of a download: JSON lines for mlxctl, or lines for a person.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from mlxd.protocol.errors import MlxdError
from mlxd.protocol.units import show_bytes

PHASES = ("downloading", "checking", "unpacking", "converting")
# Ten lines a second are smooth for the eye and nothing for a pipe; a big step shows at once, as the next may be far.
INTERVAL_S = 0.1
BIG_STEP = 0.02


@dataclass(frozen=True, slots=True)
class Pulled:
    """The model that is there now."""

    model_id: str
    path: Path
    already: bool  # it was there before


class Reporter(Protocol):
    """Where progress goes; may be called from several threads."""

    def progress(self, phase: str, done_bytes: int, total_bytes: int | None) -> None:
        """Say how far the phase is."""

    def note(self, message: str) -> None:
        """Say something worth knowing."""

    def done(self, pulled: Pulled) -> None:
        """Say that the model is there."""

    def error(self, error: MlxdError) -> None:
        """Say why there is none."""


class _Throttle:
    """Lets the first, the last and a few of the calls in between through."""

    def __init__(self, clock: Callable[[], float], interval_s: float = INTERVAL_S, *, shows_steps: bool = True) -> None:
        self._interval_s = interval_s
        self._shows_steps = shows_steps
        self._clock = clock
        self._shown: tuple[str | None, int, int | None] = (None, 0, None)
        self._next_s = 0.0

    def lets_through(self, phase: str, done_bytes: int, total_bytes: int | None) -> bool:
        if (phase, done_bytes, total_bytes) == self._shown:
            return False
        now_s = self._clock()
        is_early = phase == self._shown[0] and done_bytes != total_bytes and now_s < self._next_s
        is_small = total_bytes is None or abs(done_bytes - self._shown[1]) < BIG_STEP * total_bytes
        if is_early and (is_small or not self._shows_steps):
            return False
        self._shown = (phase, done_bytes, total_bytes)
        self._next_s = now_s + self._interval_s
        return True


class JsonReporter:
    """One JSON object a line.

    The lock may be taken again by its holder, here and in `PlainReporter`: a signal handler may report on top of it.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to *stream*, flushed line by line."""
        self._stream = stream
        self._throttle = _Throttle(clock)
        self._lock = threading.RLock()

    def progress(self, phase: str, done_bytes: int, total_bytes: int | None) -> None:
        """Write a progress line, at most ten a second."""
        with self._lock:
            if self._throttle.lets_through(phase, done_bytes, total_bytes):
                self._write({"event": "progress", "phase": phase, "done": done_bytes, "total": total_bytes})

    def note(self, message: str) -> None:
        """Write a note."""
        with self._lock:
            self._write({"event": "note", "msg": message})

    def done(self, pulled: Pulled) -> None:
        """Write the last line of a success."""
        with self._lock:
            self._write({"event": "done", "id": pulled.model_id, "path": str(pulled.path), "already": pulled.already})

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
        self._throttle = _Throttle(clock) if self._moves else _Throttle(clock, 5.0, shows_steps=False)
        self._lock = threading.RLock()
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

    def done(self, pulled: Pulled) -> None:
        """Show where the model is."""
        self._line(f"{pulled.model_id} is {'already there' if pulled.already else 'ready'}: {pulled.path}")

    def error(self, error: MlxdError) -> None:
        """Show what happened, what to do next, and the code."""
        self._line(f"error: {error.message}")
        for way in error.ways:
            self._line(f"  try: {way}")
        self._line(f"  code: {error.code}")

    def _line(self, text: str) -> None:
        with self._lock:
            start = "\n" if self._unfinished is not None else ""
            self._unfinished = None
            self._stream.write(f"{start}{text}\n")
            self._stream.flush()


def counter(phase: str, total_bytes: int, reporter: Reporter) -> Callable[[int], None]:
    """Return what takes the size of each piece that was written, and reports the sum."""
    done_bytes = 0

    def on_bytes(n_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += n_bytes
        reporter.progress(phase, min(done_bytes, total_bytes), total_bytes)

    return on_bytes


def _amount(done_bytes: int, total_bytes: int | None) -> str:
    if total_bytes is None or total_bytes == 0:
        return show_bytes(done_bytes)
    percent = 100 * done_bytes // total_bytes
    return f"{percent:3d} %  {done_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"
