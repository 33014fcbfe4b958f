"""A text in the user's editor: a copy in a folder of its own, which is kept when it could not be used."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from mlxctl.verb import usage_error
from mlxd.protocol.errors import ControlError, FileInvalid

_FALLBACK = "vi"


class Draft:
    """A copy that is edited."""

    def __init__(self, text: str) -> None:
        """Write *text* to a file that only this user can read.

        Raises:
            ControlError: there is no editor.
        """
        self._editor = _editor()
        self.path = Path(tempfile.mkdtemp(prefix="mlxctl-")) / "config.toml"
        self.path.touch(mode=0o600)
        self.path.write_bytes(text.encode())

    def edit(self) -> str:
        """Have the user edit the copy, and return it.

        Raises:
            ControlError: the editor failed; the copy is gone.
            FileInvalid: what it left is no text; the copy is kept.
        """
        hint = problem = None
        try:
            if (status := _run([*self._editor, str(self.path)])) != 0:
                problem = f"ended with status {status}; nothing was changed"
        except OSError as error:
            problem, hint = f"cannot be run: {error.strerror}", "EDITOR=nano mlxctl config edit"
        if problem is not None:
            self.remove()
            raise ControlError(f"the editor {self._editor[0]!r} {problem}", code="editor.failed", hint=hint)
        try:
            return self.path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise FileInvalid(f"{self.path} is no text any more: {error}") from None

    def kept(self, error: ControlError) -> ControlError:
        """Return *error* with the place of the copy, which stays."""
        error.message += f"\nnothing was changed; your text is kept as {self.path}"
        error.hint = f"mlxctl config apply {shlex.quote(str(self.path))}, once it is fixed"
        return error

    def remove(self) -> None:
        """Delete the copy and what the editor left beside it."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _editor() -> list[str]:
    """Return the editor's command line, which may have options."""
    for name in ("VISUAL", "EDITOR"):
        with contextlib.suppress(ValueError):  # an open quote
            words = shlex.split(os.environ.get(name, ""))
            if words:
                return words
    if not sys.stdin.isatty():
        raise usage_error(
            "there is no editor: neither VISUAL nor EDITOR is set, and this is no terminal",
            "EDITOR=COMMAND mlxctl config edit\nmlxctl config apply FILE",
            "editor.missing",
        )
    return [_FALLBACK]


def _run(command: list[str]) -> int:
    """Run the editor to its end; Ctrl-C is the editor's, not ours."""
    with subprocess.Popen(command) as editor:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return editor.wait()
        finally:
            signal.signal(signal.SIGINT, before)
