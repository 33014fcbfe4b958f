'''What a person types at the prompt of a chat, as one text: edited, remembered, of one line or several.

Several lines are made by """ ... """, by a backslash at the end of a line, or by pasting them.
'''

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

from mlxctl.history import History

FIRST, NEXT = ">>> ", "... "
_QUOTES = '"""'
# What is pasted comes in one go; no person types the next line this fast.
_PASTE_GAP_S = 0.02

Complete = Callable[[str], list[str]]


class Prompt:
    """Reads texts from the terminal. Only one at a time may exist: the line editor is the process's."""

    def __init__(self, history: History, complete: Complete, on_problem: Callable[[str], None]) -> None:
        """Take what is remembered, and what a beginning of a line may be completed to."""
        self._history = history
        self._complete = complete
        self._on_problem = on_problem
        self._readline = _import_readline()
        self._choices: list[str] = []
        if self._readline is not None:
            self._set_up(self._readline)

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

    def _read_lines(self) -> Iterator[str]:
        line = input(FIRST)
        if line.lstrip().startswith(_QUOTES):
            yield from self._read_quoted(line.lstrip().removeprefix(_QUOTES))
            return
        is_command = line.startswith("/")
        while True:
            if line.endswith("\\"):
                yield line[:-1]
            else:
                yield line
                if is_command or not _has_more():
                    return
            line = input(NEXT)

    def _read_quoted(self, line: str) -> Iterator[str]:
        while not line.rstrip().endswith(_QUOTES):
            yield line
            line = input(NEXT)
        yield line.rstrip().removesuffix(_QUOTES)

    def _remember(self, text: str) -> None:
        if self._readline is not None:
            self._readline.add_history(text)
        try:
            self._history.add(text)
        except OSError as error:
            self._history.is_kept = False
            self._on_problem(f"note: what you type is not kept: {self._history.path}: {error.strerror}")

    def _set_up(self, readline: ModuleType) -> None:
        readline.set_auto_history(False)
        for entry in self._history.read():
            readline.add_history(entry)
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        readline.set_completer_delims("")  # a line is completed as a whole
        readline.set_completer(self._choose)

    def _choose(self, line: str, number: int) -> str | None:
        if number == 0:
            self._choices = self._complete(line)
        return self._choices[number] if number < len(self._choices) else None

    def forget(self) -> None:
        """Forget what was typed, here and in the file.

        Raises:
            OSError: the file could not be removed.
        """
        if self._readline is not None:
            self._readline.clear_history()
        self._history.clear()


def _import_readline() -> ModuleType | None:
    """Return the line editor; some builds of Python have none, and lines are then edited by the terminal alone."""
    with contextlib.suppress(ImportError):
        import readline

        return readline
    return None


def _has_more() -> bool:
    """Tell whether more was typed already: lines that were pasted with this one."""
    readable, _, _ = select.select([sys.stdin], [], [], _PASTE_GAP_S)
    return bool(readable)
