"""Cuts TOML text into statements, so that an edit touches the lines it means and no other byte.

Only for text that `tomllib` has parsed: what is no TOML is cut anyhow. Knows nothing of settings.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

Path = tuple[str, ...]

# Some editors begin a UTF-8 file with it.
BOM = "\ufeff"

_TOKEN = re.compile(
    r'''
      (?P<string> """(?:[^\\]|\\.)*?"{3,5} | \'\'\'.*?\'{3,5} | "(?:[^"\\\n]|\\.)*" | '[^'\n]*' )
    | (?P<comment> \#[^\n]* )
    | (?P<open> [\[{] ) | (?P<close> [\]}] )
    | (?P<newline> \n )
    | (?P<other> [^"'\#\[\]{}\n]+ | . )
    ''',
    re.DOTALL | re.VERBOSE,
)
_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_KEY = re.compile(rf"[ \t]*(?P<key>{_PART}(?:[ \t]*\.[ \t]*{_PART})*)[ \t]*")


class StatementKind(Enum):
    """What a statement is."""

    BLANK = "blank"
    COMMENT = "comment"
    TABLE = "table"
    ARRAY_TABLE = "array table"
    PAIR = "pair"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, with its line end; a value over several lines is one statement.

    Attributes:
        kind: what it is.
        text: its text; the texts of all statements are the document.
        line: its first line, from 1.
        table: the path of the table that it stands in; its own for TABLE.
        path: what it defines, from the root; empty for BLANK and COMMENT.
    """

    kind: StatementKind
    text: str
    line: int
    table: Path
    path: Path


@dataclass(frozen=True, slots=True)
class PairParts:
    """The text of a PAIR: `before` ends with the equals sign and blanks, `after` has the comment and the line end."""

    before: str
    value: str
    after: str


@functools.lru_cache(maxsize=4)  # an edit looks at the same text several times
def scan(text: str) -> tuple[Statement, ...]:
    """Return the statements of *text*, in order."""
    statements = []
    table: Path = ()
    path: Path
    line = 1
    for piece in _pieces(text):
        bare = piece.strip()
        if not bare:
            kind, path = StatementKind.BLANK, ()
        elif bare.startswith("#"):
            kind, path = StatementKind.COMMENT, ()
        elif bare.startswith("[["):
            kind, path = StatementKind.ARRAY_TABLE, _parse_key(bare[2:])
        elif bare.startswith("["):
            kind, path = StatementKind.TABLE, _parse_key(bare[1:])
        else:
            kind, path = StatementKind.PAIR, table + _parse_key(bare)
        if kind is StatementKind.TABLE or kind is StatementKind.ARRAY_TABLE:
            table = path
        statements.append(Statement(kind, piece, line, table, path))
        line += piece.count("\n")
    return tuple(statements)


def _pieces(text: str) -> Iterator[str]:
    """Yield the text up to each line end that is inside no string and no bracket."""
    start = depth = 0
    for match in _TOKEN.finditer(text):
        depth += (match.lastgroup == "open") - (match.lastgroup == "close")
        if match.lastgroup == "newline" and depth == 0:
            yield text[start : match.end()]
            start = match.end()
    if start < len(text):
        yield text[start:]


def _parse_key(text: str) -> Path:
    """Return the parts of the key that *text* begins with."""
    match = _KEY.match(text)
    if match is None:
        return ()
    if _BARE_KEY.fullmatch(match["key"]):
        return tuple(match["key"].split("."))
    node: Any = tomllib.loads(match["key"] + " = 0")
    parts = []
    while isinstance(node, dict):
        ((part, node),) = node.items()
        parts.append(part)
    return tuple(parts)


def split_pair(text: str) -> PairParts:
    """Cut the text of a PAIR around its value."""
    match = _KEY.match(text)
    start = match.end() if match is not None else 0
    start += len(text[start:]) - len(text[start:].removeprefix("=").lstrip(" \t"))
    end = start
    depth = 0
    for token in _TOKEN.finditer(text, start):
        if token.lastgroup == "comment" and depth == 0:
            break
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        if token[0].strip():
            end = token.start() + len(token[0].rstrip())
    return PairParts(text[:start], text[start:end], text[end:])


def comments(text: str) -> list[str]:
    """Return all comments of *text*, those inside of arrays as well, each from its `#` on."""
    return [match[0].rstrip() for match in _TOKEN.finditer(text) if match.lastgroup == "comment"]


def index_lines(text: str) -> dict[Path, int]:
    """Return path → line of each statement that defines something; what stands inside of a value is not there."""
    return {statement.path: statement.line for statement in scan(text.removeprefix(BOM)) if statement.path}


def line_of(lines: Mapping[Path, int], path: Path) -> int | None:
    """Return the line of the statement that defines *path* or the nearest thing around it."""
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)


def locate(text: str, path: Path) -> tuple[int, int]:
    """Return (line, column) of the statement that defines *path*, or the nearest above it; (1, 1) without one."""
    best: Statement | None = None
    for statement in scan(text.removeprefix(BOM)):
        is_above = statement.path and path[: len(statement.path)] == statement.path
        if is_above and (best is None or len(statement.path) > len(best.path)):
            best = statement
    if best is None:
        return 1, 1
    return best.line, len(best.text) - len(best.text.lstrip()) + 1
