'''The prompt of a chat: reads a text of one line or several, edited by `readline`, and remembers it in a file.

Several lines are made by """ ... """, by a backslash at the end of a line, or by pasting them.
'''

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_FIRST, _NEXT = ">>> ", "... "
_QUOTES = '"""'
# What is pasted comes in one go; no person types the next line this fast.
_PASTE_GAP_S = 0.02
MAX_ENTRIES = 1000

# Some builds of Python have none: the terminal alone edits lines then.
_readline = importlib.import_module("readline") if importlib.util.find_spec("readline") else None


class History:
    """The file of what was typed: one entry a line, line ends and backslashes escaped.

    Only its owner reads it, and its size is bounded. Two chats may add to it at once.
    """

    def __init__(self, path: Path) -> None:
        """Take the *path*; nothing is opened yet."""
        self.path = path
        self.is_kept = True

    def read(self) -> list[str]:
        """Return the last entries, the oldest first; none when there is no file to read.

        A file that has grown to twice the bound is cut to it.
        """
        try:
            lines = self.path.read_text(errors="replace").splitlines()
        except OSError:
            return []
        if len(lines) >= 2 * MAX_ENTRIES:
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
            with contextlib.suppress(OSError):
                _append(temporary, lines[-MAX_ENTRIES:])
                temporary.replace(self.path)
        return [_unescape(line) for line in lines[-MAX_ENTRIES:]]

    def add(self, entry: str) -> None:
        """Append an entry, unless switched off.

        Raises:
            OSError: it could not be written.
        """
        if self.is_kept:
            _append(self.path, [_escape(entry)])

    def clear(self) -> None:
        """Remove all entries.

        Raises:
            OSError: the file could not be removed.
        """
        self.path.unlink(missing_ok=True)


def _append(path: Path, lines: list[str]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, "".join(f"{line}\n" for line in lines).encode(errors="replace"))
    finally:
        os.close(handle)


def _escape(entry: str) -> str:
    # Whatever `splitlines` takes for the end of a line.
    return re.sub(
        "[\\\\\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]",
        lambda found: "\\\\" if found[0] == "\\" else f"\\{ord(found[0]):x};",
        entry,
    )


def _unescape(line: str) -> str:
    return re.sub(r"\\(?:(\\)|([0-9a-f]{1,4});)", lambda found: found[1] or chr(int(found[2], 16)), line)


class LineEditor:
    """Reads texts from the terminal. Only one at a time may exist: `readline` is the process's."""

    def __init__(
        self, history: History, complete: Callable[[str], list[str]], on_problem: Callable[[str], None]
    ) -> None:
        """Take what is remembered, and what a beginning of a line may be completed to."""
        self._history = history
        self._complete = complete
        self._on_problem = on_problem
        self._choices: list[str] = []
        if _readline is None:
            return
        _readline.set_auto_history(False)
        for entry in history.read():
            _readline.add_history(entry)
        is_libedit = "libedit" in (_readline.__doc__ or "")
        _readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        _readline.set_completer_delims("")  # a line is completed as a whole
        _readline.set_completer(self._choose)

    def read(self) -> str | None:
        """Return the next text; None at the end (Ctrl-D).

        Raises:
            KeyboardInterrupt: Ctrl-C; what was typed is forgotten.
        """
        try:
            text = "\n".join(self._read_lines())
        except EOFError:
            return None
        if text.strip():
            self._remember(text)
        return text

    def forget(self) -> None:
        """Forget what was typed, here and in the file.

        Raises:
            OSError: the file could not be removed.
        """
        if _readline is not None:
            _readline.clear_history()
        self._history.clear()

    def _read_lines(self) -> Iterator[str]:
        line = input(_FIRST)
        if line.lstrip().startswith(_QUOTES):
            line = line.lstrip().removeprefix(_QUOTES)
            while not line.rstrip().endswith(_QUOTES):
                yield line
                line = input(_NEXT)
            yield line.rstrip().removesuffix(_QUOTES)
            return
        is_command = line.startswith("/")
        while line.endswith("\\") or (not is_command and _has_more()):
            yield line.removesuffix("\\")
            line = input(_NEXT)
        yield line

    def _remember(self, text: str) -> None:
        if _readline is not None:
            _readline.add_history(text)
        try:
            self._history.add(text)
        except OSError as error:
            self._history.is_kept = False
            self._on_problem(f"note: what you type is not kept: {self._history.path}: {error.strerror}")

    def _choose(self, line: str, number: int) -> str | None:
        if number == 0:
            self._choices = self._complete(line)
        return self._choices[number] if number < len(self._choices) else None


def _has_more() -> bool:
    """Tell whether more was typed already: lines that were pasted with this one."""
    readable, _, _ = select.select([sys.stdin], [], [], _PASTE_GAP_S)
    return bool(readable)
