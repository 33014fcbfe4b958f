"""A program on a terminal: a pty of a size, keys that are typed, and what is on the page."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

TIMEOUT_S = 30.0
# What a shell does: the terminal controls its session, the program is a job in the foreground, its stop is noticed.
_SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        os._exit(os.waitstatus_to_exitcode(status) & 255)
    os.write(1, b"[stopped]")
"""
STOPPED = "[stopped]"
# A page that is drawn again and again without what a test waits for.
_MOST_CHARACTERS = 2_000_000
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`python -m mlxctl ARGUMENTS` on a terminal of its own."""

    def __init__(
        self, *arguments: str, columns: int = 80, rows: int = 24, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it; *environment* is added to this process's."""
        self.output = ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode  # a read may end inside a character
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, rows, signal_it=False)
        self.modes = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SHELL, sys.executable, "-m", "mlxctl", *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)

    def resize(self, columns: int, rows: int, *, signal_it: bool = True) -> None:
        """Give it another size."""
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if signal_it:
            self.signal(signal.SIGWINCH)

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        os.killpg(os.tcgetpgrp(self._ours), number)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def read(self) -> None:
        """Take in what the program writes next."""
        ready, _, _ = select.select([self._ours], [], [], TIMEOUT_S)
        assert ready, f"nothing more came in {TIMEOUT_S:g} s after: {self.output!r}"
        assert len(self.output) < _MOST_CHARACTERS, f"what was waited for did not come: {self.page!r}"
        self.output += self._decode(os.read(self._ours, 65536))

    def read_until(self, *texts: str) -> None:
        """Return when all *texts* are on the page."""
        while not all(text in self.page for text in texts):
            self.read()

    def wait(self) -> int:
        """Return the exit status; all output has been taken in by then."""
        while True:
            ready, _, _ = select.select([self._ours], [], [], 0 if self.process.poll() is not None else 0.05)
            if ready:
                self.output += self._decode(os.read(self._ours, 65536))
            elif self.process.poll() is not None:
                return self.process.returncode

    @property
    def page(self) -> str:
        """What was drawn last, without codes."""
        return _CODES.sub("", self.output.rpartition("\x1b[H")[2])

    @property
    def modes_now(self) -> list[Any]:
        """What the terminal is set to."""
        return termios.tcgetattr(self._theirs)
