"""Parsed settings files: from bytes to a document and a snapshot, and what two documents differ in."""

from __future__ import annotations

import ast
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.config.edit import is_same
from mlxd.config.scan import BOM, Path, locate
from mlxd.protocol.errors import FileInvalid, InvalidValue, SettingsError, UnknownSetting
from mlxd.protocol.key import format_path, parse_path
from mlxd.protocol.settings import Row, Settings
from mlxd.protocol.table import Keyed, SettingProblem, decode, find, find_row, rows

_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")
_AT_END = " (at end of document)"
# A key as tomllib names it: `('pool',)`.
_KEYS = re.compile(r"\((?:'[^'\\]*',? ?)+\)")
_LIST = "mlxctl config list"
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the settings file, as text, as TOML and typed."""

    text: str
    document: Mapping[str, Any]
    settings: Settings


def parse(data: bytes, name: str, usable_bytes: int) -> Version:
    """Return the version that the file called *name* holds.

    Raises:
        FileInvalid: `config.toml:12:5: pool.memory: why`, with path, line and column in `data`.
    """
    try:
        text = data.decode()  # a byte order mark stays in the text, and is kept
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise file_invalid(name, line, 1, "it is not UTF-8") from None
    document = _parse_toml(text, name)
    try:
        return Version(text, document, decode(document, usable_bytes))
    except SettingProblem as problem:
        line, column = locate(text, problem.path)
        near = nearest(problem.path) if find(problem.path) is None else None
        reason = str(problem) if near is None else f"{problem}; the nearest is {near}"
        raise file_invalid(name, line, column, reason, param=format_path(problem.path)) from None


def _parse_toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text.removeprefix(BOM))
    except RecursionError:
        raise file_invalid(name, 1, 1, "it is nested too deeply") from None
    except ValueError as error:  # a whole number of thousands of digits is not a TOMLDecodeError
        words = str(error)
        match = _POSITION.search(words)
        line, column = (int(match[1]), int(match[2])) if match is not None else (text.count("\n") + 1, 1)
        words = _POSITION.sub("", words).removesuffix(_AT_END)
        reason = _KEYS.sub(lambda keys: format_path(ast.literal_eval(keys[0])), words)
        raise file_invalid(name, line, column, reason) from None


def file_invalid(name: str, line: int, column: int, reason: str, *, param: str | None = None) -> FileInvalid:
    """Return the error of a file that cannot be used, with its place."""
    return FileInvalid(
        f"{name}:{line}:{column}: {reason}",
        param=param,
        hint="fix the file, then try again",
        data={"file": name, "line": line, "column": column},
    )


def blame(error: SettingsError, text: str, name: str) -> FileInvalid:
    """Return *error*, which an owner raised about settings that a person has written, with its place in the file."""
    line, column = locate(text, path_of(error))
    return file_invalid(name, line, column, error.message, param=error.param)


def path_of(error: SettingsError) -> Path:
    """Return the path of the setting that *error* is about; () where it names none."""
    try:
        return parse_key(error.param) if error.param is not None else ()
    except UnknownSetting:
        return ()


def parse_key(key: str) -> Path:
    """Return the path of a dotted key as a person writes it.

    Raises:
        UnknownSetting: it is no dotted key.
    """
    try:
        return parse_path(key)
    except ValueError as error:
        raise UnknownSetting(str(error), param=key, hint=_LIST) from None


def row_of(path: Path) -> Row:
    """Return the table's row for *path*.

    Raises:
        UnknownSetting: there is no such setting; the message names the nearest.
    """
    row = find_row(path)
    if row is not None:
        return row
    key, near = format_path(path), nearest(path)
    if find(path) is not None:
        raise UnknownSetting(f"there is no setting {key!r}: it is a table of settings", param=key, hint=_LIST)
    words = f"there is no setting {key!r}" + ("" if near is None else f"; the nearest is {near!r}")
    raise UnknownSetting(words, param=key, hint=_LIST)


def nearest(path: Path) -> str | None:
    """Return the key of the setting or group most like *path*; ids of keyed tables are taken over."""
    known = set()
    for pattern, _ in rows():
        for length in range(1, len(pattern) + 1):
            filled = (
                path[place] if part == "*" and place < len(path) else part
                for place, part in enumerate(pattern[:length])
            )
            known.add(format_path(tuple(filled)))
    found = difflib.get_close_matches(format_path(path), sorted(known), n=1)
    return found[0] if found else None


def is_entry(path: Path) -> bool:
    """Tell whether *path* is an entry of a keyed table, such as `models."org/name"`."""
    return isinstance(find(path[:-1]), Keyed)


def entry_of(path: Path) -> Path | None:
    """Return the entry of a keyed table that the setting at *path* belongs to; None for a plain setting."""
    return next((path[:length] for length in range(1, len(path)) if is_entry(path[:length])), None)


def is_stated(document: Mapping[str, Any], path: Path) -> bool:
    """Tell whether a value or a table stands at *path*."""
    return _at(document, path) is not _NOTHING


def written(document: Mapping[str, Any], path: Path) -> tuple[Any, bool]:
    """Return what stands in the document at *path* and True, or the default and False."""
    value = _at(document, path)
    return (row_of(path).default, False) if value is _NOTHING else (value, True)


def _at(node: Any, path: Path) -> Any:
    for part in path:
        if not isinstance(node, Mapping) or part not in node:
            return _NOTHING
        node = node[part]
    return node


def paths(document: Mapping[str, Any]) -> list[Path]:
    """Return the path of every setting; those of a keyed table once per entry of the document."""
    found: list[Path] = []
    for pattern, _ in rows():
        if "*" in pattern:
            star = pattern.index("*")
            entries = _at(document, pattern[:star])
            names = () if entries is _NOTHING else entries
            found += [(*pattern[:star], name, *pattern[star + 1 :]) for name in names]
        else:
            found.append(pattern)
    return found


def leaves(document: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield (path, value as written) of each setting that stands in a valid document."""
    return ((path, _at(document, path)) for path in paths(document) if is_stated(document, path))


def decode_edited(document: Mapping[str, Any], usable_bytes: int) -> Settings:
    """Return the snapshot of a document that an edit led to.

    Raises:
        InvalidValue: the edit is at fault: it left something out that its neighbours need.
    """
    try:
        return decode(document, usable_bytes)
    except SettingProblem as problem:
        raise InvalidValue(str(problem), param=format_path(problem.path)) from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return {key, old, new} of each setting that the documents state otherwise; where one is silent, the default."""
    before, after = dict(leaves(old)), dict(leaves(new))
    changed = [path for path in before if path not in after or not is_same([before[path]], [after[path]])]
    changed += [path for path in after if path not in before]
    return [{"key": format_path(path), "old": written(old, path)[0], "new": written(new, path)[0]} for path in changed]


def toml_value(path: Path, value: Any, usable_bytes: int) -> Any:
    """Return what is written to the file when *path* is set to *value*.

    Raises:
        UnknownSetting: there is no such setting.
        InvalidValue: with the bounds.
    """
    row = row_of(path)
    try:
        row.kind.parse(value, usable_bytes)
        return row.kind.to_toml(value)
    except ValueError as error:
        key = format_path(path)
        raise InvalidValue(f"{key}: {error}", param=key) from None
