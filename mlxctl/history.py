"""What was typed in chats, kept in a file that only its owner reads, and of bounded size."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

MAX_ENTRIES = 1000


class History:
    """The file: one entry a line, line ends and backslashes escaped. Two chats may add to it at once."""

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
            with contextlib.suppress(OSError):
                self._replace(lines[-MAX_ENTRIES:])
        return [_unescape(line) for line in lines[-MAX_ENTRIES:]]

    def add(self, entry: str) -> None:
        """Append an entry, unless switched off.

        Raises:
            OSError: it could not be written.
        """
        if not self.is_kept:
            return
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{_escape(entry)}\n".encode(errors="replace"))
        finally:
            os.close(handle)

    def clear(self) -> None:
        """Remove all entries.

        Raises:
            OSError: the file could not be removed.
        """
        self.path.unlink(missing_ok=True)

    def _replace(self, lines: list[str]) -> None:
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123  (with a mode)
            file.write("\n".join(lines) + "\n")
        temporary.replace(self.path)


def _escape(entry: str) -> str:
    # Whatever `splitlines` takes for the end of a line.
    return "".join(
        "\\\\"
        if character == "\\"
        else character
        if len(f"a{character}a".splitlines()) == 1
        else f"\\{ord(character):x};"
        for character in entry
    )


def _unescape(line: str) -> str:
    entry, rest = "", line
    while rest:
        before, slash, rest = rest.partition("\\")
        entry += before
        if not slash:
            break
        if rest.startswith("\\"):
            entry, rest = entry + "\\", rest[1:]
            continue
        code, _, rest = rest.partition(";")
        with contextlib.suppress(ValueError, OverflowError):
            entry += chr(int(code, 16))
    return entry
