"""What the settings table says of one setting, and how a dataclass field carries it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlxd.protocol.kind import Kind, SecretReference


@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of one setting.

    Attributes:
        kind: parses and formats the value, and knows its bounds.
        default: the value as it would stand in the file; None where the setting may be left out and means "none".
        help: one sentence for `--help`, the default file and the README.
        live: True when a change applies at once; False when it needs a restart.
        verb: True for the live scalars of `pool`, which have a `pool set-*` verb.
    """

    kind: Kind[Any]
    default: Any
    help: str
    live: bool = True
    verb: bool = False

    @property
    def is_required(self) -> bool:
        """Whether an entry of a keyed table must state it."""
        return self.default is None and not isinstance(self.kind, SecretReference)


def row(kind: Kind[Any], default: Any, help_text: str, *, live: bool = True, verb: bool = False) -> Any:
    """Return a dataclass field that carries its row. It has no dataclass default: `table.decode` fills every one."""
    return field(metadata={"row": Row(kind, default, help_text, live, verb)})


def group(table: type) -> Any:
    """Return a dataclass field that is a table of its own."""
    return field(metadata={"group": table})


def keyed(entry: type) -> Any:
    """Return a dataclass field that is a table of tables: id -> *entry*."""
    return field(metadata={"keyed": entry})
