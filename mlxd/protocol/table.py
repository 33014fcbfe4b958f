"""Derive from the settings table: its rows, the row of a path, the snapshot of a document, the JSON Schema."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec import Struct

from mlxd.protocol.key import format_path
from mlxd.protocol.kind import kind_of
from mlxd.protocol.settings import Row, Settings


class SettingProblem(Exception):
    """A value in a document that cannot be used: where (`path`) and why."""

    def __init__(self, path: tuple[str, ...], reason: str) -> None:
        """Say `pool.memory: reason`."""
        super().__init__(f"{format_path(path)}: {reason}")
        self.path = path
        self.reason = reason


class Keyed(NamedTuple):
    """A table of tables: id → *entry*."""

    entry: type[Struct]


@functools.cache
def members(table: type[Struct]) -> Mapping[str, Row | Keyed | type[Struct]]:
    """Return what stands in a table by its names: settings, keyed tables and tables."""
    defaults = dict(zip(reversed(table.__struct_fields__), reversed(table.__struct_defaults__), strict=False))
    found: dict[str, Row | Keyed | type[Struct]] = {}
    for name, hint in get_type_hints(table, include_extras=True).items():
        make_row = defaults.get(name, msgspec.NODEFAULT)
        if make_row is not msgspec.NODEFAULT:
            found[name] = make_row(kind_of(hint))
        else:
            found[name] = Keyed(get_args(hint)[1]) if get_args(hint) else hint
    return MappingProxyType(found)


def rows(table: type[Struct] = Settings, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Row]]:
    """Yield (path, row) of every setting in order; a keyed table's entry stands under the part `*`."""
    for name, member in members(table).items():
        match member:
            case Row():
                yield (*prefix, name), member
            case Keyed(entry):
                yield from rows(entry, (*prefix, name, "*"))
            case _:
                yield from rows(member, (*prefix, name))


def find(path: tuple[str, ...]) -> Row | Keyed | type[Struct] | None:
    """Return what may stand at *path*; any id is an entry of a keyed table."""
    member: Row | Keyed | type[Struct] | None = Settings
    for part in path:
        match member:
            case Row() | None:
                return None
            case Keyed(entry):
                member = entry
            case _:
                member = members(member).get(part)
    return member


def find_row(path: tuple[str, ...]) -> Row | None:
    """Return the row of the setting at *path*; None when there is none."""
    found = find(path)
    return found if isinstance(found, Row) else None


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


def decode(document: Mapping[str, Any], usable_bytes: int) -> Settings:
    """Return the snapshot that a parsed TOML document stands for; what it leaves out has its default.

    Raises:
        SettingProblem: the first unknown key or unusable value, with its path.
    """
    settings: Settings = _decode(Settings, document, (), usable_bytes)
    return settings


def _decode(table: type[Struct], document: Any, path: tuple[str, ...], usable_bytes: int) -> Any:
    stated = _table(document, path)
    for name in stated:
        if name not in members(table):
            raise SettingProblem((*path, name), "there is no such setting")
    values: dict[str, Any] = {}
    for name, member in members(table).items():
        here = (*path, name)
        match member:
            case Row():
                values[name] = _decode_row(member, stated, here, usable_bytes)
            case Keyed(entry):
                entries = _table(stated.get(name, {}), here)
                decoded = {key: _decode(entry, value, (*here, key), usable_bytes) for key, value in entries.items()}
                values[name] = MappingProxyType(decoded)
            case _:
                values[name] = _decode(member, stated.get(name, {}), here, usable_bytes)
    return table(**values)


def _table(value: Any, path: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SettingProblem(path, "it must be a table")
    return value


def _decode_row(row: Row, document: Mapping[str, Any], path: tuple[str, ...], usable_bytes: int) -> Any:
    if path[-1] not in document and row.is_required:
        raise SettingProblem(path, f"it is missing; it must be {row.kind.accepted}")
    try:
        return row.kind.parse(document.get(path[-1], row.default), usable_bytes)
    except ValueError as error:
        raise SettingProblem(path, str(error)) from None


def make_schema() -> dict[str, Any]:
    """Return the JSON Schema of the settings file, for editors that complete and check it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of mlxd",
        **_table_schema(Settings),
    }


def _table_schema(table: type[Struct]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, member in members(table).items():
        match member:
            case Row(kind, default, help_text):
                said = {} if default is None else {"default": default}
                properties[name] = {**kind.schema(), "description": f"{help_text} Accepted: {kind.accepted}.", **said}
            case Keyed(entry):
                properties[name] = {"type": "object", "additionalProperties": _table_schema(entry)}
            case _:
                properties[name] = _table_schema(member)
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [name for name, member in members(table).items() if isinstance(member, Row) and member.is_required]
    return {**schema, "required": required} if required else schema
