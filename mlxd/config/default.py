"""The settings file that the first commit writes: every setting with its help and its default, commented out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from mlxd.config.edit import format_value
from mlxd.protocol.settings import Row
from mlxd.protocol.table import rows

_WIDTH = 100
_INTRODUCTION = """\
# Settings of mlxd. `mlxctl config set` and the other verbs of mlxctl edit this file and keep your comments;
# edits by hand are taken up while the daemon runs. The settings that are commented out have their defaults.
# Sizes: 24GB is 24 * 10^9 bytes, 24GiB is 24 * 2^30. Durations: 250ms, 30s, 5m, 1h30m, 2d.
"""


def render_default() -> str:
    """Return the file, which means the same as no file."""
    lines = [_INTRODUCTION]
    table: tuple[str, ...] = ()
    for path, row in rows():
        if path[:-1] != table:
            table = path[:-1]
            lines.append(_header(table))
        else:
            lines.append("#\n" if "*" in table else "\n")
        lines += _help(row)
        lines += (f"# {line}\n" for line in f"{path[-1]} = {_example(row)}".splitlines())  # a long list has several
    return "".join(lines)


def _header(table: tuple[str, ...]) -> str:
    """Return a group's header; a keyed table has none until there is a key, so that its header is commented out."""
    names = [('"ORG/NAME"' if table[0] == "models" else "ID") if part == "*" else part for part in table]
    name = ".".join(names)
    return f"\n# [{name}]\n" if "*" in table else f"\n[{name}]\n"


def _help(row: Row) -> Iterator[str]:
    for text in (row.help, f"Accepted: {row.kind.accepted}."):
        for line in textwrap.wrap(text, _WIDTH):
            yield f"# {line}\n"


def _example(row: Row) -> str:
    return "..." if row.default is None else format_value(row.default)
