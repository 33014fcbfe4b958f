"""From the text between a model's tool tags to calls. What is no call comes out as the text that it is.

Where a format writes the name first, arguments come out while the model writes them (`tool_stream.py`).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from mlxd.engine.answer.format import Segment
from mlxd.engine.base import TextKind
from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.tool_grammar import shape_of
from mlxd.engine.tool_stream import CallStream

# mlx-lm's names of the states; the text of any other state is a header of the format, which it drops.
_KINDS = {"normal": TextKind.CONTENT, "reasoning": TextKind.REASONING}
_TOOL = "tool"


class Piece(NamedTuple):
    """A piece of an answer. One of kind TOOL holds pieces of calls, and its text is what the model wrote for them."""

    kind: TextKind
    text: str
    calls: tuple[CallPiece, ...] = ()


class ToolReader:
    """Reads the segments of one answer in order.

    Without tools in the request nothing is a call: tags and all come out as content, as they come. With tools a call is
    held back until it is known to be one: where its format is read as it is written, once its arguments have begun, and
    otherwise once it is whole. White space around calls is no content: it is held back until text follows.
    """

    def __init__(self, tokenizer: Any, use: ToolUse | None) -> None:
        """Take mlx-lm's `TokenizerWrapper`, which has the parser and the tags, and what the request says of tools."""
        self._parse = tokenizer.tool_parser
        self._shape = shape_of(tokenizer)
        self._start: str = tokenizer.tool_call_start or ""
        self._end: str = tokenizer.tool_call_end or ""
        self._use = use
        self._open: list[str] | None = None  # the text between the tags that has not come out
        self._stream: CallStream | None = None  # reads it, where its format is read as it is written
        self._space = ""
        self._holds_space = use is not None
        self._has_called = False

    @property
    def is_done(self) -> bool:
        """Whether the one call that the request allows has been made."""
        return self._has_called and self._open is None and self._use is not None and not self._use.parallel

    def read(self, segments: list[Segment]) -> list[Piece]:
        """Return what the segments make known."""
        pieces: list[Piece] = []
        for state, text in segments:
            if state == _TOOL:
                pieces += self._inside(text)
            else:
                if self._open is not None:
                    pieces += self._closed(self._end)
                if self.is_done:  # what a token holds beside the end of the last call comes after the answer
                    break
                if state in _KINDS:
                    pieces += self._outside(_KINDS[state], text)
        return pieces

    def finish(self) -> list[Piece]:
        """Return what is held back when the answer ends: a call whose format has no end tag, or text."""
        pieces: list[Piece] = []
        if self._open is not None:
            is_call = not self._end or (self._stream is not None and self._stream.has_begun)
            pieces = self._closed("") if is_call or self._use is None else self._as_text("")
        if self._space and not self._has_called:
            pieces.append(Piece(TextKind.CONTENT, self._space))
        return pieces

    def _inside(self, text: str) -> list[Piece]:
        is_first = self._open is None
        if self._open is None:
            self._open = []
        if self._use is None:
            return [Piece(TextKind.CONTENT, (self._start if is_first else "") + text)]
        if is_first:
            self._open.append(self._start)
            shape = None if self._shape is None else self._shape.stream
            self._stream = None if shape is None else CallStream(shape, self._parse, self._use)
        self._open.append(text)
        if self._stream is None:
            return []
        calls = self._stream.take(text)
        return [self._called(calls)] if self._stream.has_begun else []

    def _called(self, calls: list[CallPiece], end: str = "") -> Piece:
        """Return pieces of calls, with all the text for them that has not come out."""
        text, self._open, self._space = "".join(self._open or ()) + end, [], ""
        self._holds_space = self._has_called = True
        return Piece(TextKind.TOOL, text, tuple(calls))

    def _outside(self, kind: TextKind, text: str) -> list[Piece]:
        if kind is not TextKind.CONTENT or not self._holds_space or not text:
            return [Piece(kind, text)]
        text, self._space = self._space + text, ""
        if text.isspace():
            self._space = text
            return []
        self._holds_space = False
        return [Piece(kind, text)]

    def _closed(self, end: str) -> list[Piece]:
        if self._use is None:
            self._open = None
            return [Piece(TextKind.CONTENT, end)]
        if self._stream is not None and self._stream.has_begun:
            calls = self._stream.close(is_whole=bool(end) or not self._end)
        else:
            calls = self._calls("".join(self._open or ()).removeprefix(self._start), self._use)
            if not calls:
                return self._as_text(end)
            if not self._use.parallel:
                calls = calls[:1]
        piece = self._called(calls, end)
        self._open = None
        return [piece]

    def _as_text(self, end: str) -> list[Piece]:
        """Return an attempt at a call that is none."""
        text = self._space + "".join(self._open or ()) + end
        self._open, self._space, self._holds_space = None, "", False
        return [Piece(TextKind.CONTENT, text)]

    def _calls(self, text: str, use: ToolUse) -> list[CallPiece]:
        """Return the whole calls in *text*; none where it is no call."""
        try:
            parsed = self._parse(text, list(use.tools))
            return [_call(item) for item in (parsed if isinstance(parsed, list) else [parsed])]
        except Exception:  # noqa: BLE001  (a parser of mlx-lm's on what a model wrote: it raises anything)
            return []


def _call(parsed: Any) -> CallPiece:
    """Check what a parser returned; anything but a name and an object of arguments raises."""
    name, arguments = parsed["name"], parsed.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise TypeError(name)
    # Infinity and NaN, which Python's JSON has and no other, raise here.
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return CallPiece(_encodable(name), _encodable(text), is_last=True)


def _encodable(text: str) -> str:
    """Return *text* with halves of characters, which JSON can spell and UTF-8 cannot, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
