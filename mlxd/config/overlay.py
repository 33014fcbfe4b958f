"""Runtime-only values: they lie over the file, are seen, and are gone with the process. Pure.

`State` is what is in force: the file's version, what lies over it, and the settings that both make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mlxd.config.document import Version, decode_edited, is_stated, written
from mlxd.config.edit import change, is_same
from mlxd.config.scan import Path
from mlxd.protocol.key import format_path
from mlxd.protocol.kind import Machine
from mlxd.protocol.settings import Settings


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
    def of(cls, version: Version, overlay: Overlay, machine: Machine) -> State:
        """Return what *version* and *overlay* make together.

        Raises:
            InvalidValue: they do not go together: the overlay has settings of a table that the file lost.
        """
        if not overlay:
            return cls(version, overlay, version.document, version.settings)
        document = overlay.over(version.document)
        return cls(version, overlay, document, decode_edited(document, machine))

    def origin(self, path: Path) -> str:
        """Return where the setting at *path* comes from: overlay, file or default."""
        if self.overlay.covers(path):
            return "overlay"
        return "file" if written(self.document, path)[1] else "default"
