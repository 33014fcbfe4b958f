"""Edits of the settings file that keep its comments, order and line ends; the only module that imports tomlkit.

tomlkit 0.15 has three traps when it edits a whole document: a table added beside dotted keys swallows its neighbour,
a deleted table takes the next one's comment along, and an added key lands below the comment that introduces the next
table. So the document is cut into statements (`scan.py`) and spliced here; tomlkit sees one value at a time. Which
comment belongs to what: a block of comment lines right above a table header is that table's; a comment on a statement's
own line, or inside of its value, is that statement's.

Two guards look at every result: `tomllib` must read from it exactly what the edit means, and no comment may be gone but
those of what was removed.
"""

from __future__ import annotations

import copy
import difflib
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import tomlkit
from tomlkit.items import Array

from mlxd.config.scan import BOM, Path, Statement, StatementKind, comments, scan, split_pair

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_LINE = 100

Changes = Sequence[tuple[Path, Any]]


class CannotEditError(Exception):
    """The document is written in a way that an edit would damage; nothing was changed."""


def edit(text: str, changes: Changes) -> str:
    """Return *text* with each (path, TOML value) set, or unset where the value is None.

    Raises:
        CannotEditError: the result failed a guard.
    """
    if text.startswith(BOM):
        return BOM + edit(text.removeprefix(BOM), changes)
    if any(statement.kind is StatementKind.ARRAY_TABLE for statement in scan(text)):
        raise CannotEditError("it has an array of tables, [[...]], which no setting is")
    wanted = change(tomllib.loads(text), changes)
    edited, owned = text, Counter[str]()
    for path, value in changes:
        edited, removed = _unset(edited, path) if value is None else _set(edited, path, value)
        owned += removed
    try:
        got = tomllib.loads(edited)
    except tomllib.TOMLDecodeError as error:
        raise CannotEditError(f"the result would be no TOML: {error}") from None
    if not is_same(wanted, got):
        raise CannotEditError("the result would mean something else")
    if Counter(comments(text)) - owned != Counter(comments(edited)):
        raise CannotEditError("a comment would be lost")
    return edited


def change(document: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """Return what the parsed *document* is after the changes; the meaning that `edit` has to meet."""
    changed = copy.deepcopy(dict(document))
    for path, value in changes:
        node = changed
        for part in path[:-1]:
            below = node.get(part)
            if below is None and value is None:
                break
            if below is None:
                below = node[part] = {}
            if not isinstance(below, dict):
                raise CannotEditError(f"{part!r} is no table")
            node = below
        else:
            if value is None:
                node.pop(path[-1], None)
            else:
                node[path[-1]] = copy.deepcopy(value)
    return changed


def is_same(left: Any, right: Any) -> bool:
    """Tell whether two parsed documents mean the same; 1, 1.0 and true differ, an empty table is as good as none."""
    return _canonical(left) == _canonical(right)


def _canonical(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = {name: _canonical(below) for name, below in value.items()}
        return "{" + ",".join(f"{name!r}:{parts[name]}" for name in sorted(parts) if parts[name] != "{}") + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_canonical(below) for below in value) + "]"
    return f"{type(value).__name__}:{value!r}"


def _set(text: str, path: Path, value: Any) -> tuple[str, Counter[str]]:
    statements = scan(text)
    for index, statement in enumerate(statements):
        if statement.kind is StatementKind.PAIR and statement.path == path[: len(statement.path)]:
            below = path[len(statement.path) :]
            return _join(statements, index, index + 1, _with_value(statement, below, value)), Counter()
    text, removed = _unset(text, path)  # written as a table until now
    return _insert(scan(text), path, value, _newline(text)), removed


def _with_value(statement: Statement, below: Path, value: Any) -> str:
    """Return the statement's text with the value at *below* it replaced; comments inside of a value survive."""
    parts = split_pair(statement.text)
    old = _read(parts.value)
    new = change({"x": old}, [(("x", *below), value)])["x"]
    if is_same([old], [new]):
        return statement.text
    rendered = _edit_array(parts.value, old, new) or format_value(new)
    lost = list((Counter(comments(parts.value)) - Counter(comments(rendered))).elements())
    newline = _newline(statement.text)
    return "".join(comment + newline for comment in lost) + parts.before + rendered + parts.after


def _read(value_text: str) -> Any:
    return tomllib.loads("x = " + value_text)["x"]


def _edit_array(value_text: str, old: Any, new: Any) -> str | None:
    """Return the array's text with elements put in and taken out where they differ; None when that cannot be done."""
    if not isinstance(old, list) or not isinstance(new, list) or "\n" not in value_text:
        return None
    if not all(isinstance(item, str) for item in old + new):
        return None
    array = tomlkit.parse("x = " + value_text)["x"]
    if not isinstance(array, Array):
        return None
    for tag, old_start, old_end, new_start, new_end in reversed(difflib.SequenceMatcher(None, old, new).get_opcodes()):
        if tag == "equal":
            continue
        for position in reversed(range(old_start, old_end)):
            del array[position]
        for position, item in enumerate(new[new_start:new_end], old_start):
            array.insert(position, item)
    rendered = array.as_string()
    try:
        is_meant = _read(rendered) == new
    except tomllib.TOMLDecodeError:
        is_meant = False
    return rendered if is_meant else None


def format_value(value: Any) -> str:
    """Return a value as TOML; a list that is too long for a line gets a line per element."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_format_key((name,))} = {format_value(below)}" for name, below in value.items())
        return "{ " + inner + " }" if inner else "{}"
    if isinstance(value, (list, tuple)):
        items = [format_value(item) for item in value]
        line = "[" + ", ".join(items) + "]"
        if len(line) <= _LONGEST_LINE:
            return line
        return "[\n" + "".join(f"    {item},\n" for item in items) + "]"
    return str(tomlkit.item(value).as_string())


def _format_key(path: Path) -> str:
    return ".".join(part if _BARE_KEY.fullmatch(part) else str(tomlkit.item(part).as_string()) for part in path)


def _insert(statements: Sequence[Statement], path: Path, value: Any, newline: str) -> str:
    """Return the text with a new pair in the table where it belongs, which is made when there is none."""
    table = path[:-1]
    header = _find_header(statements, table)
    if header is not None or not table:
        index = _place_in_section(statements, -1 if header is None else header, path[-1])
        return _join(statements, index, index, _pair(path[-1:], value, newline))
    for length in range(len(table), 0, -1):
        # A table that dotted keys made may not get a header as well: go on with dotted keys beside the last of them.
        dotted = [
            index
            for index, statement in enumerate(statements)
            if statement.kind is StatementKind.PAIR
            and len(statement.table) < length
            and statement.path[:length] == table[:length]
        ]
        if dotted:
            key = path[len(statements[dotted[-1]].table) :]
            return _join(statements, dotted[-1] + 1, dotted[-1] + 1, _pair(key, value, newline))
    section = f"[{_format_key(table)}]{newline}" + _pair(path[-1:], value, newline)
    return _insert_section(statements, table, section, newline)


def _pair(key: Path, value: Any, newline: str) -> str:
    return f"{_format_key(key)} = {format_value(value)}{newline}"


def _find_header(statements: Sequence[Statement], table: Path) -> int | None:
    for index, statement in enumerate(statements):
        if statement.kind is StatementKind.TABLE and statement.path == table:
            return index
    return None


def _place_in_section(statements: Sequence[Statement], header: int, key: str) -> int:
    """Return where a new pair goes: below its commented-out default, the last pair, or else the header."""
    end = _section_end(statements, header)
    commented = re.compile(rf"\s*#\s*{re.escape(_format_key((key,)))}\s*=")
    for index in range(header + 1, end):
        if re.match(r"\s*#\s*\[", statements[index].text):
            break  # a commented-out table begins
        if commented.match(statements[index].text):
            return index + 1
    pairs = [index for index in range(header + 1, end) if statements[index].kind is StatementKind.PAIR]
    if pairs:
        return pairs[-1] + 1
    return header + 1 if header >= 0 else end


def _section_end(statements: Sequence[Statement], header: int) -> int:
    """Return the index after the section's own: before the next header's comments and the blanks above them."""
    end = header + 1
    while end < len(statements) and statements[end].kind is not StatementKind.TABLE:
        end += 1
    if end < len(statements):
        end = _lead_start(statements, end)
    while end and statements[end - 1].kind is StatementKind.BLANK:
        end -= 1
    return end


def _lead_start(statements: Sequence[Statement], header: int) -> int:
    """Return where the block of comments right above a header begins."""
    start = header
    while start and statements[start - 1].kind is StatementKind.COMMENT:
        start -= 1
    return start


def _insert_section(statements: Sequence[Statement], table: Path, section: str, newline: str) -> str:
    """Put a new table above its sub-tables, else below its last sibling, else below its parent, else at the end."""
    headers = [index for index, statement in enumerate(statements) if statement.kind is StatementKind.TABLE]
    children = [index for index in headers if statements[index].path[: len(table)] == table]
    parent = table[:-1]
    family = [index for index in headers if parent and statements[index].path[: len(parent)] == parent]
    if children:
        index = _lead_start(statements, children[0])
    elif family:
        index = _section_end(statements, family[-1])
    else:
        index = len(statements)
    if index and statements[index - 1].kind is not StatementKind.BLANK:
        section = newline + section
    if index < len(statements) and statements[index].kind is not StatementKind.BLANK:
        section += newline
    return _join(statements, index, index, section)


def _unset(text: str, path: Path) -> tuple[str, Counter[str]]:
    """Remove the pair or the whole table at *path*; return the text and the comments that went with it."""
    statements = scan(text)
    gone: set[int] = set()
    for index, statement in enumerate(statements):
        if statement.path[: len(path)] == path:
            if statement.kind is StatementKind.PAIR:
                gone.add(index)
            elif statement.kind is StatementKind.TABLE:
                gone |= _section(statements, index)
        elif statement.kind is StatementKind.PAIR and statement.path == path[: len(statement.path)]:
            below = path[len(statement.path) :]
            return _join(statements, index, index + 1, _with_value(statement, below, None)), Counter()
    gone |= _emptied(statements, gone)
    removed = Counter(comment for index in gone for comment in comments(statements[index].text))
    return "".join(statement.text for index, statement in enumerate(statements) if index not in gone), removed


def _section(statements: Sequence[Statement], header: int) -> set[int]:
    """Return what goes with a table: the comments above its header, its lines, and the blanks that set it apart."""
    start, end = _lead_start(statements, header), _section_end(statements, header)
    if start == 0 and header > 0:
        start = header  # comments at the top of the file may be about the file
    is_apart = start == 0 or statements[start - 1].kind is StatementKind.BLANK
    while is_apart and end < len(statements) and statements[end].kind is StatementKind.BLANK:
        end += 1
    return set(range(start, end))


def _emptied(statements: Sequence[Statement], gone: set[int]) -> set[int]:
    """Return the headers of keyed tables that have lost their last pair and hold no comment."""
    headers: set[int] = set()
    for index in gone:
        table = statements[index].table
        header = _find_header(statements, table) if len(table) > 1 else None
        if header is None or header in gone or _lead_start(statements, header) != header:
            continue
        section = _section(statements, header)
        rest = [statements[i] for i in section if i not in gone and i != header]
        if all(statement.kind is StatementKind.BLANK for statement in rest) and not comments(statements[header].text):
            headers |= section
    return headers


def _join(statements: Sequence[Statement], start: int, end: int, middle: str) -> str:
    before = "".join(statement.text for statement in statements[:start])
    if before and middle and not before.endswith("\n"):
        before += _newline(before)
    return before + middle + "".join(statement.text for statement in statements[end:])


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
