"""Arguments of a call while the model still writes them: a JSON object as it is, or one made of tagged arguments. Pure.

What comes out depends on the text alone and not on how it is cut. A call is streamed once its name is a known one and
its arguments have begun; from then on it is a call, whatever follows: if the model fails to write a JSON object, or is
cut off, its arguments end as they were written, and no JSON parser takes them for whole. What does not begin so is for
the parser of the format, at its end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mlxd.engine.tool import CallPiece, ToolUse

Parse = Callable[[str, list[Any]], Any]

# A beginning that takes longer is none: what has not begun is read again with each token.
_MOST_CHARACTERS = 512

_OUTSIDE = re.compile(r'[^"{}\[\]]+|["{}\[\]]')
_HALF = r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_INSIDE = re.compile(
    rf'[^"\\\x00-\x1f]+|"|\\u[dD][89abAB][0-9a-fA-F]{{2}}\\u[dD][c-fC-F][0-9a-fA-F]{{2}}|{_HALF}|\\.|[\x00-\x1f]|\\',
    re.DOTALL,
)
# What may be the beginning of an escape, or of the second half of a character.
_UNDECIDED = re.compile(r"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?")
# Beside a type, what some parsers take for more types.
_OTHER = frozenset({"enum", "anyOf", "oneOf", "allOf"})


class CallStream:
    """Reads what stands between one pair of tags, piece by piece."""

    def __init__(self, shape: JsonFormat | TaggedFormat, parse: Parse, use: ToolUse) -> None:
        """Take the format, its parser, which reads the values between tags, and what may be called."""
        self.has_begun = False  # a call has, and all of this text is read here
        self._shape = shape
        self._parse = parse
        self._use = use
        self._rest = ""  # not read yet
        self._arguments: _Object | _Tagged | None = None  # of the call that is being written

    def take(self, text: str) -> list[CallPiece]:
        """Return what *text* makes known."""
        self._rest += text
        return self._read(is_end=False)

    def close(self, *, is_whole: bool) -> list[CallPiece]:
        """End with the text, which *is_whole* unless it was cut off; the last piece of each call has been returned."""
        pieces = self._read(is_end=True)
        if self._arguments is not None:
            pieces.append(CallPiece(None, self._arguments.end(self._rest, is_whole=is_whole), is_last=True))
        return pieces

    def _read(self, *, is_end: bool) -> list[CallPiece]:
        pieces: list[CallPiece] = []
        while True:
            name = self._begin() if self._arguments is None else None
            if self._arguments is None:
                return pieces
            arguments, self._rest = self._arguments.take(self._rest, is_end=is_end)
            has_ended = self._arguments.has_ended
            if arguments or name is not None or has_ended:
                pieces.append(CallPiece(name, arguments, is_last=has_ended))
            if not has_ended:
                return pieces
            self._arguments = None

    def _begin(self) -> str | None:
        """Read the head of a call, if there is one, and return its name."""
        beginning = self._rest[:_MOST_CHARACTERS]
        if not self.has_begun:
            found = self._shape.head.match(beginning)
            if found is None or found[1] not in self._use.names:
                return None
        else:
            following = self._shape.following if self._use.parallel else None
            found = None if following is None else following.search(beginning)
            if found is None:
                return None
        self.has_begun = True
        self._rest = self._rest[found.end() :]
        shape, name = self._shape, str(found[1])
        self._arguments = _Object() if isinstance(shape, JsonFormat) else _Tagged(shape, self._parse, self._use, name)
        return name


class JsonFormat(NamedTuple):
    """A format whose arguments are a JSON object, which goes out as it is written but for what no text may hold.

    Attributes:
        head: what stands before the object, with the name in it.
        following: the head of another call in the same text, after anything.
    """

    head: re.Pattern[str]
    following: re.Pattern[str] | None = None


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

    def end(self, rest: str, *, is_whole: bool) -> str:  # noqa: ARG002  (the object itself says it)
        """Return nothing: all that is known has come out."""
        return ""


class TaggedFormat(NamedTuple):
    """A format in which every argument stands between tags of its own.

    Attributes:
        head: what stands before the first argument, with the function's name in it.
        opening: what an argument begins with,
        argument: and all that stands before its value, with its name in it.
        end: what stands after a value.
        last: what stands after the last argument; None where the tag of calls ends them.
        is_line: whether a text stands on lines of its own, so that one line break before and after it is none of it;
            where not, no white space around it is.
        call: a call with one argument, for the parser to read its value.
        following: the head of another call in the same text, after anything.
    """

    head: re.Pattern[str]
    opening: str
    argument: re.Pattern[str]
    end: str
    last: str | None
    is_line: bool
    call: str
    following: re.Pattern[str] | None = None


class _Tagged:
    """Arguments become members of a JSON object: a text as it is written, another value when it is whole."""

    def __init__(self, shape: TaggedFormat, parse: Parse, use: ToolUse, function: str) -> None:
        self.has_ended = False
        self._shape = shape
        self._parse = parse
        self._use = use
        self._function = function
        self._properties = _properties(use, function)
        self._rest = ""
        self._is_first = True
        self._argument: str | None = None  # whose value is being written
        self._is_text = False  # it is declared as text,
        self._has_text = False  # and its beginning has gone out
        self._open = "{"

    def take(self, text: str, *, is_end: bool) -> tuple[str, str]:  # noqa: ARG002  (a tag ends it, or nothing)
        """Return what is known of the arguments, and what of *text* is after it, or is not decided."""
        self._rest, read, self._open = text, self._open, ""
        while not self.has_ended:
            more = self._between() if self._argument is None else self._value(self._argument)
            if not more:
                break
            read += more
        return read, self._rest

    def end(self, rest: str, *, is_whole: bool) -> str:
        """Return what ends the arguments; a call that is whole is ended by the tag after it."""
        if self._argument is None:
            return "}" if is_whole else ""
        if self._has_text:
            return _escaped(rest)
        return f'"{_escaped(rest)}' if self._is_text else rest

    def _between(self) -> str:
        """Read up to the next value, or to the end of the call."""
        shape = self._shape
        found = shape.argument.search(self._rest)
        last = -1 if shape.last is None else self._rest.find(shape.last)
        if found is not None and not 0 <= last < found.start():
            self._argument = found[1].strip()
            schema = self._properties.get(self._argument)
            self._is_text = (
                isinstance(schema, Mapping) and schema.get("type") == "string" and not _OTHER & schema.keys()
            )
            self._has_text = False
            self._rest = self._rest[found.end() :]
            comma, self._is_first = "" if self._is_first else ", ", False
            return f"{comma}{json.dumps(self._argument, ensure_ascii=False)}: "
        if shape.last is not None and last >= 0:
            self.has_ended = True
            self._rest = self._rest[last + len(shape.last) :]
            return "}"
        begun = self._rest.find(shape.opening)
        self._rest = self._rest[
            begun if begun >= 0 else self._rest.rfind("<") if "<" in self._rest else len(self._rest) :
        ]
        return ""

    def _value(self, name: str) -> str:
        """Read the value of an argument, as far as it is known."""
        end = self._rest.find(self._shape.end)
        if end < 0:
            return self._part_of_text() if self._is_text else ""
        written, self._rest = self._rest[:end], self._rest[end + len(self._shape.end) :]
        self._argument = None
        if self._has_text:
            return _escaped(self._right(written)) + '"'
        return self._converted(name, written)

    def _part_of_text(self) -> str:
        """Return more of a text; what may belong to the tag after it is held back."""
        tag = self._rest.rfind("<")
        known = self._rest[:tag] if tag >= 0 and self._shape.end.startswith(self._rest[tag:]) else self._rest
        known = self._right(known)
        if not self._has_text and len(known.strip()) <= len("null"):  # which a parser may take for no text
            return ""
        self._rest = self._rest[len(known) :]
        if self._has_text:
            return _escaped(known)
        self._has_text = True
        return '"' + _escaped(known.removeprefix("\n") if self._shape.is_line else known.lstrip())

    def _right(self, text: str) -> str:
        """Return *text* without what the format puts between it and its end tag."""
        return text.removesuffix("\n") if self._shape.is_line else text.rstrip()

    def _converted(self, name: str, written: str) -> str:
        """Return a whole value as mlx-lm's parser reads it; what the parser fails on is a text."""
        call = self._shape.call.format(function=self._function, name=name, value=written)
        try:
            value = self._parse(call, list(self._use.tools))["arguments"][name]
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except Exception:  # noqa: BLE001  (a parser of mlx-lm's on what a model wrote: it raises anything)
            return json.dumps(written.strip(), ensure_ascii=False)


def _properties(use: ToolUse, name: str) -> Mapping[str, Any]:
    """Return the schemas of a function's arguments."""
    for tool in use.tools:
        if tool["function"]["name"] == name:
            parameters = tool["function"].get("parameters")
            declared = parameters.get("properties") if isinstance(parameters, Mapping) else None
            return declared if isinstance(declared, Mapping) else {}
    return {}


def _escaped(text: str) -> str:
    """Return *text* as it stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
