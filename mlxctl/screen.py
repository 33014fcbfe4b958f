"""The terminal while a verb watches: a page of its own, single keys, its size; put back however the verb ends.

Knows what a line looks like and nothing of what is in it.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import FrameType
from typing import Any, Self

import typer

_ENTER = "\x1b[?1049h\x1b[?25l"  # the other page, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_PAGE, _PLAIN = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[0m"
# What ends a program that says nothing against it; each would leave the terminal as it is.
_FATAL = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Style(Enum):
    """How a line stands out, beside its words; the value is the terminal's code."""

    PLAIN = ""
    HEAD = "1"  # bold
    DIM = "2"
    ALERT = "1;31"  # bold and red


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a page."""

    text: str
    style: Style = Style.PLAIN


def is_screen() -> bool:
    """Tell whether stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in {"", "dumb"}


def render_page(lines: Sequence[Line], columns: int, rows: int, *, is_coloured: bool) -> str:
    """Return what draws the lines over the page before, cut to its size."""
    shown = [_render_line(line, columns, is_coloured=is_coloured) for line in lines[:rows]]
    return _HOME + f"{_END_OF_LINE}\n".join(shown) + _END_OF_LINE + _END_OF_PAGE


def _render_line(line: Line, columns: int, *, is_coloured: bool) -> str:
    # Names of models and files come from disks: what a terminal would obey is not sent to it.
    text = "".join(c if c.isprintable() else "?" for c in line.text)
    if len(text) > columns:
        text = text[: max(0, columns - 3)] + "..."[:columns]
    return f"\x1b[{line.style.value}m{text}{_PLAIN}" if is_coloured and line.style.value else text


class Screen:
    """The terminal of this process, as a context."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._is_coloured = not os.environ.get("NO_COLOR")
        self._keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._cooked = None if self._keyboard is None else termios.tcgetattr(self._keyboard)
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        handlers: dict[signal.Signals, Any] = {
            **dict.fromkeys(_FATAL, self._on_fatal),
            signal.SIGTSTP: self._on_stop,
            signal.SIGCONT: self._on_continue,
            signal.SIGWINCH: lambda *_: None,  # that it came is in the pipe
        }
        self._undo.callback(os.close, self._woken)
        self._undo.callback(os.close, self._wake)
        # A signal that comes right before `select` waits is acted upon when that returns: the pipe makes it return.
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False))
        for number, handler in handlers.items():
            self._undo.callback(signal.signal, number, signal.signal(number, handler))
        self._undo.callback(self._end)
        try:
            self._begin()
        except BaseException:  # Ctrl-C while the page was being taken
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        # A second Ctrl-C must not catch the terminal half put back.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_FATAL})
        try:
            self._undo.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            columns, rows = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            columns, rows = shutil.get_terminal_size()
        return max(1, columns), max(1, rows)

    def draw(self, lines: Iterable[Line]) -> None:
        """Show the lines instead of what was shown."""
        columns, rows = self.size
        self._write(render_page(list(lines), columns, rows, is_coloured=self._is_coloured))

    def wait(self, seconds: float) -> str | None:
        """Return the key that was pressed; "" when the page must be drawn again, None when the time is over."""
        watched = [self._woken, *([] if self._keyboard is None else [self._keyboard])]
        ready, _, _ = select.select(watched, [], [], max(0.0, seconds))
        if self._woken in ready:
            os.read(self._woken, 4096)
            return ""
        if self._keyboard in ready:
            data = os.read(self._keyboard, 4096)
            if not data:  # the terminal is gone
                raise typer.Exit(128 + signal.SIGHUP)
            return data.decode(errors="replace")
        return None

    def _begin(self) -> None:
        if self._keyboard is not None:
            tty.setcbreak(self._keyboard, termios.TCSADRAIN)
        self._write(_ENTER)

    def _end(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody is there any more
            self._write(_LEAVE)
        if self._keyboard is not None and self._cooked is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._cooked)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _on_fatal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  (signal's signature)
        raise typer.Exit(128 + number)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: give the terminal back, stop, and take it again."""
        self._end()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # comes back when the shell goes on, or at once where there is none
        signal.signal(signal.SIGTSTP, self._on_stop)
        self._on_continue(number, frame)

    def _on_continue(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._begin()
