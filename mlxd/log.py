"""The daemon's log: one line per event, on stderr or in a file that is rotated by size (launchd does not rotate).

Owns the handler and the level of the root logger. No prompt text goes through here: callers log ids, sizes and causes.
Lines of one kind are bounded per minute, so that no client can drive everything else out of the log.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.protocol.settings import Settings

MAX_FILE_BYTES = 10_000_000
KEPT_FILES = 3
# Lines of one kind that are written in a window. Info lines are mostly one per request.
WINDOW_S = 60.0
MOST_WARNINGS = 20
MOST_INFOS = 600
# Kinds that are counted at once; far more than the program has, and a bound for libraries that log texts.
_MOST_KINDS = 1000
# Libraries whose info lines are about themselves.
_QUIET = ("asyncio", "aiohttp", "transformers", "httpx", "huggingface_hub")


class _LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info  message`; line breaks of a message become spaces, a traceback keeps its lines.

    Paths and model names come from clients: what a terminal would obey, or a file not take, is written as an escape.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(lowered)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        record.lowered = record.levelname.lower()
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        message = " ".join(record.message.splitlines())
        if not message.isprintable():
            message = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        record.message = message
        return super().formatMessage(record)


Kind = tuple[str, int, str]  # logger, level, and the text without its values


@dataclass(slots=True)
class _Window:
    until_s: float
    lines: int = 0


class FloodGate:
    """Counts the lines of each kind in windows of `WINDOW_S`, and says which are too many. Debug lines never are."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._windows: dict[Kind, _Window] = {}  # the oldest first

    def admit(self, record: logging.LogRecord) -> bool:
        """Count the line and tell whether it is written."""
        if record.levelno < logging.INFO:
            return True
        text = str(record.msg)
        kind = record.name, record.levelno, record.getMessage() if text == "%s" else text
        window = self._windows.get(kind)
        if window is None:
            if len(self._windows) >= _MOST_KINDS:
                return False
            window = self._windows[kind] = _Window(self._now() + WINDOW_S)
        window.lines += 1
        return window.lines <= _most(record.levelno)

    def end_windows(self) -> Iterator[logging.LogRecord]:
        """End the windows that are over; yield a line for each kind that had too many."""
        now_s = self._now()
        while self._windows:
            (name, level, text), window = next(iter(self._windows.items()))
            if window.until_s > now_s:
                return
            del self._windows[name, level, text]
            left_out = window.lines - _most(level)
            if left_out > 0:
                words = "%d more lines like this were left out within %g s: %s"
                yield logging.LogRecord(name, level, "", 0, words, (left_out, WINDOW_S, text), None)


def _most(level: int) -> int:
    return MOST_INFOS if level == logging.INFO else MOST_WARNINGS


class _LineHandler(logging.StreamHandler[Any]):
    """Writes lines as far as they are no flood, and survives a disk that takes none.

    A line that cannot be written is counted. Stderr is told of the first one only, and the log itself of their number
    once it can be written again.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._gate = FloodGate()
        self._lost = 0
        super().__init__(*arguments, **named)
        self.setFormatter(_LineFormatter())

    def handle(self, record: logging.LogRecord) -> bool:
        with self.lock or contextlib.nullcontext():
            summaries = list(self._gate.end_windows())
            is_admitted = self._gate.admit(record)
            for summary in summaries:
                super().handle(summary)
            return super().handle(record) if is_admitted else False

    def emit(self, record: logging.LogRecord) -> None:
        before = self._lost
        super().emit(record)
        if before and self._lost == before:
            self._lost = 0
            text = "the log could not be written for a while: %d lines may be missing"
            super().emit(logging.LogRecord(__name__, logging.WARNING, "", 0, text, (before,), None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)  # a mistake of ours in the call
            return
        self._lost += 1
        if self._lost == 1:
            with contextlib.suppress(OSError):
                reason = error.strerror or error
                sys.stderr.write(f"mlxd: the log cannot be written: {reason}; lines are lost until it can\n")


class _PrivateFileHandler(_LineHandler, logging.handlers.RotatingFileHandler):
    """A rotated file that only its owner can read: model names and paths are nobody else's business."""

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")


def configure(level: str, log_file: Path | None) -> None:
    """Send the log to *log_file*, or to stderr, from *level* on.

    Raises:
        OSError: the file cannot be opened.
    """
    handler: logging.Handler
    if log_file is None:
        handler = _LineHandler(sys.stderr)
    else:
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFileHandler(log_file, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def apply(new: Settings) -> None:
    """Follow `daemon.log_level`."""
    logging.getLogger().setLevel(new.daemon.log_level.upper())
