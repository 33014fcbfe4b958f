"""Arguments of a call that are a JSON object, while the model still writes them. Pure."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from mlxd.engine.tool import CallPiece, ToolUse

# A beginning that takes longer is none: what has not begun is read again with each token.
MOST_CHARACTERS = 512

_OUTSIDE = re.compile(r'[^"{}\[\]]+|["{}\[\]]')
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_INSIDE = re.compile(
    rf'[^"\\\x00-\x1f]+|"|\\u[dD][89abAB][0-9a-fA-F]{{2}}\\u[dD][c-fC-F][0-9a-fA-F]{{2}}|{_HALF}|\\.|[\x00-\x1f]|\\',
    re.DOTALL,
)
# What may be the beginning of an escape, or of the second half of a character.
_UNDECIDED = re.compile(r"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?")


class JsonFormat(NamedTuple):
    """A format whose arguments are a JSON object.

    Attributes:
        head: what stands before the object, with the name in it.
        following: the head of another call in the same text, after anything.
    """

    head: re.Pattern[str]
    following: re.Pattern[str] | None = None


class JsonStream:
    """Arguments that are JSON go out as they are written, but for what no text may hold. Implements `CallStream`."""

    def __init__(self, shape: JsonFormat, _: object, use: ToolUse) -> None:
        """Take the format, its parser, which is not needed, and what may be called."""
        self.has_begun = False
        self._shape = shape
        self._names = use.names
        self._following = shape.following if use.parallel else None
        self._rest = ""  # not read yet
        self._object: _Object | None = None

    def take(self, text: str) -> list[CallPiece]:
        """Return what *text* makes known."""
        self._rest += text
        return self._read(is_end=False)

    def close(self, *, is_whole: bool) -> list[CallPiece]:  # noqa: ARG002  (the object itself says it)
        """End with the text."""
        pieces = self._read(is_end=True)
        if self._object is not None:
            pieces.append(CallPiece(None, "", is_last=True))
        return pieces

    def _read(self, *, is_end: bool) -> list[CallPiece]:
        pieces: list[CallPiece] = []
        while True:
            name = self._begin() if self._object is None else None
            if self._object is None:
                return pieces
            arguments, self._rest = self._object.take(self._rest, is_end=is_end)
            has_ended = self._object.has_ended
            if arguments or name is not None or has_ended:
                pieces.append(CallPiece(name, arguments, is_last=has_ended))
            if not has_ended:
                return pieces
            self._object = None

    def _begin(self) -> str | None:
        """Read the head of a call, if there is one, and return its name."""
        beginning = self._rest[:MOST_CHARACTERS]
        if not self.has_begun:
            found = self._shape.head.match(beginning)
            if found is None or found[1] not in self._names:
                return None
        else:
            found = None if self._following is None else self._following.search(beginning)
            if found is None:
                return None
        self.has_begun = True
        self._rest = self._rest[found.end() :]
        self._object = _Object()
        return found[1]


class _Object:
    """Finds the end of a JSON object. In its strings, control characters are escaped and half characters replaced."""

    def __init__(self) -> None:
        self.has_ended = False
        self._depth = 0
        self._is_string = False

    def take(self, text: str, *, is_end: bool) -> tuple[str, str]:
        """Return what is known of the object, and what of *text* is after it, or is not decided unless it *is_end*."""
        read, at = [], 0
        while at < len(text) and not self.has_ended:
            if self._is_string and text[at] == "\\" and not is_end and _UNDECIDED.fullmatch(text, at):
                break
            found = (_INSIDE if self._is_string else _OUTSIDE).match(text, at)
            if found is None:
                raise RuntimeError("every character is one of the alternatives")
            read.append(self._part(found[0]))
            at = found.end()
        return "".join(read), text[at:]

    def _part(self, part: str) -> str:
        if part == '"':
            self._is_string = not self._is_string
        elif self._is_string:
            if part < " ":
                return json.dumps(part)[1:-1]
            return "\ufffd" if len(part) == 6 and re.fullmatch(_HALF, part) else part
        elif part in ("{", "["):
            self._depth += 1
        elif part in ("}", "]"):
            self._depth -= 1
            self.has_ended = self._depth == 0
        return part
