"""A program on a terminal that is talked to line by line."""

from __future__ import annotations

import re
import select
from typing import Any

from tests.support.terminal import Terminal

CTRL_C, CTRL_D = "\x03", "\x04"
PROMPT = ">>> "
# After which a person presses it once more.
_PAUSE_S = 1.0
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Dialogue(Terminal):
    """`python -m mlxctl ARGUMENTS`; wide enough for no line to be broken."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        super().__init__(*arguments, columns=400, **options)
        self._position = 0

    @property
    def transcript(self) -> str:
        """All that was written, without codes."""
        return _CODES.sub("", self.output).replace("\r", "")

    def expect(self, wanted: str) -> str:
        """Return what is written after the last match, up to and with *wanted*."""
        while (found := self.transcript.find(wanted, self._position)) < 0:
            self.read()
        seen = self.transcript[self._position : found + len(wanted)]
        self._position = found + len(wanted)
        return seen

    def expect_more(self, count: int) -> None:
        """Wait until more than *count* characters are written after the last match."""
        while len(self.transcript) - self._position <= count:
            self.read()

    def interrupt(self, wanted: str) -> None:
        """Press Ctrl-C until *wanted* is written.

        Python's line editor sleeps through one that comes while it draws the last key, up to the next key.
        """
        self.type(CTRL_C)
        while wanted not in self.transcript[self._position :]:
            ready, _, _ = select.select([self._ours], [], [], _PAUSE_S)
            if ready:
                self.read()
            else:
                assert self.process.poll() is None, f"it ended: {self.output!r}"
                self.type(CTRL_C)
        self.expect(wanted)

    def ask(self, line: str) -> str:
        """Type a line at the prompt; return what is written up to the next prompt, without the line itself."""
        self.type(f"{line}\n")
        return self.expect(f"\n{PROMPT}").partition("\n")[2].removesuffix(PROMPT).removesuffix("\n")
