"""Arguments of a call that stand between tags, while the model still writes them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.tool_json import MOST_CHARACTERS

Parse = Callable[[str, list[Any]], Any]
# Beside a type, what some parsers take for more types.
_OTHER = frozenset({"enum", "anyOf", "oneOf", "allOf"})


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
        has_more: whether another call may follow in the same text, after anything.
    """

    head: re.Pattern[str]
    opening: str
    argument: re.Pattern[str]
    end: str
    last: str | None
    is_line: bool
    call: str
    has_more: bool = False


class TaggedStream:
    """Arguments become members of a JSON object: a text as it is written, another value when it is whole.

    Implements `CallStream`.
    """

    def __init__(self, shape: TaggedFormat, parse: Parse, use: ToolUse) -> None:
        """Take the format, its parser, which reads values, and what may be called."""
        self.has_begun = False
        self._shape = shape
        self._parse = parse
        self._use = use
        self._rest = ""  # not read yet
        self._function: str | None = None  # whose call is being written
        self._properties: Mapping[str, Any] = {}
        self._is_first = True
        self._argument: str | None = None  # whose value is being written
        self._is_text = False  # it is declared as text,
        self._has_text = False  # and its beginning has gone out
        self._has_ended = False

    def take(self, text: str) -> list[CallPiece]:
        """Return what *text* makes known."""
        self._rest += text
        pieces: list[CallPiece] = []
        while True:
            name = self._begin() if self._function is None else None
            if self._function is None:
                return pieces
            arguments = ("" if name is None else "{") + self._read()
            if arguments:
                pieces.append(CallPiece(name, arguments, is_last=self._has_ended))
            if not self._has_ended:
                return pieces
            self._function = None

    def close(self, *, is_whole: bool) -> list[CallPiece]:
        """End with the text; a call that is whole is ended by the tag after it."""
        if self._function is None:
            return []
        if self._argument is None:
            return [CallPiece(None, "}" if is_whole else "", is_last=True)]
        if self._has_text:
            return [CallPiece(None, _escaped(self._rest), is_last=True)]
        return [CallPiece(None, f'"{_escaped(self._rest)}' if self._is_text else self._rest, is_last=True)]

    def _begin(self) -> str | None:
        """Read the head of a call, if there is one, and return its name."""
        beginning = self._rest[:MOST_CHARACTERS]
        if not self.has_begun:
            found = self._shape.head.match(beginning)
            if found is None or found[1] not in self._use.names:
                return None
        else:
            found = self._shape.head.search(beginning) if self._shape.has_more and self._use.parallel else None
            if found is None:
                return None
        self.has_begun, self._has_ended, self._is_first = True, False, True
        self._function = found[1]
        self._properties = _properties(self._use, found[1])
        self._rest = self._rest[found.end() :]
        return self._function

    def _read(self) -> str:
        read = ""
        while not self._has_ended:
            more = self._between() if self._argument is None else self._value(self._argument)
            if not more:
                break
            read += more
        return read

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
            self._has_ended = True
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
