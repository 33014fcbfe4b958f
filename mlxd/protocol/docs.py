"""The settings table as Markdown: `python -m mlxd.protocol.docs [README.md]` prints it, or renews it in the file.

The README's copy is kept fresh by a test. Must not import anything but the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Row
from mlxd.protocol.table import rows

BEGIN = "<!-- settings: made by python -m mlxd.protocol.docs README.md -->"
END = "<!-- end of settings -->"


def render() -> str:
    """Return one Markdown table of all settings, in the order of the file."""
    return "\n".join(
        ["| Setting | Default | What it does | Value |", "|---|---|---|---|", *(_render_row(*item) for item in rows())]
    )


def replace(text: str) -> str:
    """Return *text* with the table between its markers renewed.

    Raises:
        ValueError: a marker is missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n{render()}\n{END}{tail}"


def _render_row(path: tuple[str, ...], row: Row) -> str:
    key = format_path(tuple("ID" if part == "*" else part for part in path))
    return f"| `{key}` | {_render_default(row.default)} | {_escape(row.help)} | {_escape(row.kind.accepted)} |"


def _render_default(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(f"`{_escape(item)}`" for item in _words(value)) or "none"


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        yield from map(str, value)
    else:
        yield str(value).lower() if isinstance(value, bool) else str(value)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Print the table, or renew it in the files that are named."""
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(replace(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not sys.argv[1:]:
        print(render())  # noqa: T201  (its work)


if __name__ == "__main__":
    main()
