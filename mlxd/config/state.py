"""The settings in force: the file's version, what lies over it, and what edits make of both. Pure.

Runtime-only values lie over the file (`Overlay`), are seen, and are gone with the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from mlxd.config.default import render_default
from mlxd.config.document import (
    Version,
    decode_edited,
    entry_of,
    is_entry,
    is_stated,
    leaves,
    row_of,
    toml_value,
    written,
)
from mlxd.config.edit import CannotEditError, change, edit, is_same
from mlxd.config.scan import Path
from mlxd.protocol.errors import CommitFailed
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Settings

_Changes = list[tuple[Path, Any]]


class Revert(Enum):
    """In the place of an edit's value: the file's value holds again. Only for what is runtime-only."""

    TO_FILE = "file"


@dataclass(frozen=True, slots=True)
class Edit:
    """Set *path* to *value*, as a person or TOML writes it; None unsets it, also a keyed table's entry as a whole."""

    path: Path
    value: Any


# Edits that depend on what they change (an element of a list) are made from the settings that the commit begins with.
Edits = Sequence[Edit] | Callable[[Settings], Sequence[Edit]]


@dataclass(frozen=True, slots=True)
class Overlay:
    """Values that hold instead of the file's; None for what the file states and what shall not hold."""

    values: Mapping[Path, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __bool__(self) -> bool:
        return bool(self.values)

    def keys(self) -> list[str]:
        """Return the keys of what it holds."""
        return [format_path(path) for path in self.values]

    def covers(self, path: Path) -> bool:
        """Tell whether it decides about the setting at *path*."""
        return any(path[: len(mine)] == mine for mine in self.values)

    def over(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the document that holds when this lies over *document*."""
        return change(document, list(self.values.items())) if self.values else document

    def without(self, path: Path) -> Overlay:
        """Return the overlay without what it says of *path*, of what stands below it, and of what it stands in."""
        return Overlay(
            MappingProxyType(
                {
                    mine: value
                    for mine, value in self.values.items()
                    if mine[: len(path)] != path and path[: len(mine)] != mine
                }
            )
        )

    def with_value(self, path: Path, value: Any, document: Mapping[str, Any]) -> Overlay:
        """Return the overlay with *value* at *path* over *document*, the file; nothing where it says the same."""
        below = Overlay(MappingProxyType({mine: old for mine, old in self.values.items() if mine[: len(path)] != path}))
        under = below.over(document)
        is_needed = is_stated(under, path) if value is None else not is_same([written(under, path)[0]], [value])
        return Overlay(MappingProxyType({**below.values, path: value})) if is_needed else below

    def is_same_as(self, other: Overlay) -> bool:
        """Tell whether both hold the same values."""
        return is_same(list(self.values.items()), list(other.values.items()))


@dataclass(frozen=True, slots=True)
class State:
    """What is in force.

    Attributes:
        version: the file.
        overlay: what lies over it.
        document: both, as TOML.
        settings: both, typed.
    """

    version: Version
    overlay: Overlay
    document: Mapping[str, Any]
    settings: Settings

    @classmethod
    def of(cls, version: Version, overlay: Overlay, usable_bytes: int) -> State:
        """Return what *version* and *overlay* make together.

        Raises:
            InvalidValue: they do not go together: the overlay has settings of a table that the file lost.
        """
        if not overlay:
            return cls(version, overlay, version.document, version.settings)
        document = overlay.over(version.document)
        return cls(version, overlay, document, decode_edited(document, usable_bytes))

    def origin(self, path: Path) -> str:
        """Return where the setting at *path* comes from: overlay, file or default."""
        if self.overlay.covers(path):
            return "overlay"
        return "file" if written(self.document, path)[1] else "default"


def next_state(
    base: State, wanted: Sequence[Edit] | Version, usable_bytes: int, *, persist: bool, has_file: bool
) -> State:
    """Return what follows *base*: with edits, or with another version of the file; without *persist* over the file.

    Raises:
        UnknownSetting, InvalidValue: an edit is at fault.
        CommitFailed: the file is written in a way that an edit would damage.
    """
    if isinstance(wanted, Version):
        return _replace(base, wanted, usable_bytes) if persist else _lay_file_over(base, wanted, usable_bytes)
    return _save(base, wanted, usable_bytes, has_file=has_file) if persist else _lay_over(base, wanted, usable_bytes)


def _save(base: State, edits: Sequence[Edit], usable_bytes: int, *, has_file: bool) -> State:
    """Return the state with *edits* in the file, the commented default file where there is none.

    What is set to the default that holds anyway is not written down. The overlay of what is set goes.
    """
    changes: _Changes = []
    document: Mapping[str, Any] = base.version.document
    overlay = base.overlay
    for item in edits:
        value = _value(item, usable_bytes)
        overlay = overlay.without(item.path)
        default, is_in_file = (None, True) if value is None else written(document, item.path)
        if is_in_file or not is_same([default], [value]):
            document = change(document, [(item.path, value)])
            changes.append((item.path, value))
    version = base.version
    if not is_same(document, version.document):
        try:
            text = edit(version.text if has_file else render_default(), changes)
        except CannotEditError as error:
            raise CommitFailed(
                f"the file cannot be edited safely: {error}",
                param=format_path(changes[0][0]),
                hint="mlxctl config edit, which leaves the writing to you",
            ) from None
        version = Version(text, document, decode_edited(document, usable_bytes))
    return State.of(version, overlay, usable_bytes)


def _lay_over(base: State, edits: Sequence[Edit], usable_bytes: int) -> State:
    """Return the state with *edits* over the file, which stays as it is."""
    overlay = base.overlay
    for item in edits:
        if item.value is Revert.TO_FILE:
            _value(Edit(item.path, None), usable_bytes)
            overlay = overlay.without(item.path)
        else:
            overlay = overlay.with_value(item.path, _value(item, usable_bytes), base.version.document)
    return State.of(base.version, overlay, usable_bytes)


def _replace(base: State, version: Version, usable_bytes: int) -> State:
    """Return the state with another file. The overlay of what the files differ in goes."""
    overlay = base.overlay
    for path, _ in _differing(base.version.document, version.document):
        overlay = overlay.without(path)
    return State.of(version, overlay, usable_bytes)


def _lay_file_over(base: State, version: Version, usable_bytes: int) -> State:
    """Return the state in which *version* holds without being written down."""
    overlay = Overlay()
    for path, value in _differing(base.version.document, version.document):
        entry = entry_of(path) if value is None else None
        place = path if entry is None or is_stated(version.document, entry) else entry
        overlay = overlay.with_value(place, value, base.version.document)
    return State.of(base.version, overlay, usable_bytes)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> _Changes:
    """Return (path, value in *new* or None) of each setting that the documents state otherwise."""
    before, after = dict(leaves(old)), dict(leaves(new))
    gone: _Changes = [(path, None) for path in before if path not in after]
    return gone + [
        (path, value) for path, value in after.items() if path not in before or not is_same([before[path]], [value])
    ]


def _value(item: Edit, usable_bytes: int) -> Any:
    if item.value is not None:
        return toml_value(item.path, item.value, usable_bytes)
    if not is_entry(item.path):
        row_of(item.path)
    return None
