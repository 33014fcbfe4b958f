"""What is derived from the settings table: its rows, the row of a path, the snapshot that a document stands for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mlxd.protocol.key import format_path
from mlxd.protocol.kind import Machine
from mlxd.protocol.row import Row
from mlxd.protocol.settings import Settings


class SettingProblem(Exception):
    """A value in a document that cannot be used: where (`path`) and why."""

    def __init__(self, path: tuple[str, ...], reason: str) -> None:
        """Say `pool.memory: reason`."""
        super().__init__(f"{format_path(path)}: {reason}")
        self.path = path
        self.reason = reason


def rows(table: type = Settings, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Row]]:
    """Yield (path, row) of every setting in order; a keyed table's entry stands under the part `*`."""
    for item in dataclasses.fields(table):
        path = (*prefix, item.name)
        if "row" in item.metadata:
            yield path, item.metadata["row"]
        elif "group" in item.metadata:
            yield from rows(item.metadata["group"], path)
        else:
            yield from rows(item.metadata["keyed"], (*path, "*"))


def find_row(path: tuple[str, ...]) -> Row | None:
    """Return the row of *path*, where a keyed table's id matches `*`; None when there is none."""
    pattern = find_pattern(path)
    return None if pattern is None else _index()[pattern]


def find_pattern(path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return *path* with `*` for the id of a keyed table's entry, as `rows` has it; None when it is no setting."""
    index = _index()
    if path in index and "*" not in path:
        return path
    starred = ((*path[:place], "*", *path[place + 1 :]) for place in range(1, len(path)))
    return next((pattern for pattern in starred if pattern in index), None)


@functools.cache
def _index() -> Mapping[tuple[str, ...], Row]:
    return MappingProxyType(dict(rows()))


def lookup(settings: Settings, path: tuple[str, ...]) -> Any:
    """Return the typed value at *path* of a snapshot.

    Raises:
        KeyError: no such key in a keyed table.
        AttributeError: no such setting.
    """
    value: Any = settings
    for part in path:
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def decode(document: Mapping[str, Any], machine: Machine) -> Settings:
    """Return the snapshot that a parsed TOML document stands for; what it leaves out has its default.

    Raises:
        SettingProblem: the first unknown key or unusable value, with its path.
    """
    settings: Settings = _decode(Settings, document, (), machine)
    return settings


def _decode(table: type, document: Any, path: tuple[str, ...], machine: Machine) -> Any:
    if not isinstance(document, Mapping):
        raise SettingProblem(path, "it must be a table")
    known = {item.name for item in dataclasses.fields(table)}
    for name in document:
        if name not in known:
            raise SettingProblem((*path, name), "there is no such setting")
    values = {}
    for item in dataclasses.fields(table):
        here = (*path, item.name)
        if "row" in item.metadata:
            values[item.name] = _decode_row(item.metadata["row"], document, here, machine)
        elif "group" in item.metadata:
            values[item.name] = _decode(item.metadata["group"], document.get(item.name, {}), here, machine)
        else:
            entries = document.get(item.name, {})
            if not isinstance(entries, Mapping):
                raise SettingProblem(here, "it must be a table")
            decoded = {
                key: _decode(item.metadata["keyed"], entry, (*here, key), machine) for key, entry in entries.items()
            }
            values[item.name] = MappingProxyType(decoded)
    return table(**values)


def _decode_row(row: Row, document: Mapping[str, Any], path: tuple[str, ...], machine: Machine) -> Any:
    value = document.get(path[-1], row.default)
    if path[-1] not in document and row.is_required:
        raise SettingProblem(path, f"it is missing; it must be {row.kind.describe()}")
    try:
        return row.kind.parse(value, machine)
    except ValueError as error:
        raise SettingProblem(path, str(error)) from None
