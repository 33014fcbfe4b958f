"""The daemon's log: one line per event, on stderr or in a file that is rotated by size (launchd does not rotate).

Owns the handler and the level of the root logger. No prompt text goes through here: callers log ids, sizes and causes.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import time
from pathlib import Path
from typing import Any

from mlxd.protocol.settings import Settings

MAX_FILE_BYTES = 10_000_000
KEPT_FILES = 3
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


class _PrivateFileHandler(logging.handlers.RotatingFileHandler):
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
        handler = logging.StreamHandler(sys.stderr)
    else:
        log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _PrivateFileHandler(log_file, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES)
    handler.setFormatter(_LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class LevelFollower:
    """The log as a settings participant: `daemon.log_level` applies at once."""

    def check(self, new: Settings, *, force: bool) -> list[str]:  # noqa: ARG002  (there is nothing to force)
        """Accept: the level's kind has checked it."""
        return []

    def plan(self, old: Settings, new: Settings) -> None:
        """Return nothing: a level moves no model."""

    def apply(self, old: Settings, new: Settings) -> None:
        """Set the level."""
        if old.daemon.log_level != new.daemon.log_level:
            logging.getLogger().setLevel(new.daemon.log_level.upper())
