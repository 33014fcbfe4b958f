"""What mlxctl prints: tables, sizes, errors, and the one JSON document of `--json`.

Data goes to stdout, everything else to stderr; no meaning is in colour. Knows no verb and no socket.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlxd.protocol.errors import MlxdError
from mlxd.protocol.units import format_duration, show_bytes

SCHEMA = "mlxctl/v1"
# A head, and the key of its value in a row, which is shown in the unit that the key tells; or what reads it.
Column = tuple[str, str | Callable[[Any], object]]

_GAP = "  "
_NARROWEST = 8
# A number alone, with its unit, or a duration: what is compared by its length. `1 sequence paused` is none.
_NUMBER = re.compile(r"\d[\d.,]*(?: ?(?:%|[KMGT]?i?B)(?: \(.*\))?)?|(?:\d+(?:\.\d+)?(?:ms|[dhms]))+")


def print_text(text: str) -> None:
    """Write data for people to stdout."""
    print(text, flush=True)


def print_json(document: Mapping[str, Any]) -> None:
    """Write the one document of `--json` to stdout, with its schema first."""
    import json

    plain = {"schema": SCHEMA, **_finite(dict(document))}
    print(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def print_json_line(document: Mapping[str, Any]) -> None:
    """Write one of many JSON documents to stdout, on a line of its own."""
    import json

    plain = {"schema": SCHEMA, **_finite(dict(document))}
    print(json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":")), flush=True)


def print_note(text: str) -> None:
    """Write something for people that is no data to stderr."""
    print(text, file=sys.stderr, flush=True)


def format_error(error: MlxdError) -> str:
    """Return what happened, why, the next command and the code, each on a line of its own."""
    what, *why = error.message.splitlines() or [""]
    reasons = (f"  {line.strip()}" for line in why)
    ways = (f"  try: {way}" for way in error.ways)
    return "\n".join([f"error: {what}", *reasons, *ways, f"  code: {error.code}"])


def describe_error(error: MlxdError) -> dict[str, Any]:
    """Return the `error` of the JSON document."""
    details = {"hint": error.hint, "field": error.param, "data": error.data or None}
    return {
        "code": error.code,
        "message": error.message,
        "exit": error.exit_code,
        **{key: value for key, value in details.items() if value is not None},
    }


def format_table(
    columns: Sequence[Column],
    rows: Iterable[Any],
    *,
    width: int | None = None,
    optional: Sequence[str] = (),
    names: Sequence[str] = (),
) -> str:
    """Return rows under their heads in ASCII, numbers to the right, cut to *width* where that is known.

    A cell of None is shown as `-`. Where the columns are too few, *optional* columns without any value are left out.
    Then the widest column gives way, and shows with `...` that it did; not *names* (the first column, unless given)
    and not numbers, which are of no use when cut. Then optional columns are left out, the first of them first. All
    give way only where that is not enough either.
    """
    heads = [head for head, _ in columns]
    cells = [heads, *([_cell(row, read) for _, read in columns] for row in rows)]
    limit = terminal_width() if width is None else width
    whole = frozenset(names or heads[:1])
    present = [head for head in optional if head in heads]
    if limit is not None:
        for head in present:
            if _total(_widths(cells)) > limit and all(cell == "-" for cell in _column(cells, head)):
                cells = _without(cells, head)
        for head in present:
            if head in cells[0] and not _shrink(_widths(cells), limit, _fixed(cells, whole)):
                cells = _without(cells, head)
    widths = _widths(cells)
    if limit is not None and not _shrink(widths, limit, _fixed(cells, whole)):
        _shrink(widths, limit, frozenset())
    is_number = [_is_numeric(line[column] for line in cells[1:]) for column in range(len(widths))]
    return "\n".join(
        _GAP.join(
            _fit(cell, column_width, to_the_right=right)
            for cell, column_width, right in zip(line, widths, is_number, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(row: Any, read: str | Callable[[Any], object]) -> str:
    value = show_field(read, row.get(read)) if isinstance(read, str) else read(row)
    return "-" if value is None else str(value)


def format_pairs(pairs: Iterable[tuple[str, object]]) -> str:
    """Return `name: value` lines with the values under each other; a value of None leaves its line out."""
    shown = [(name, str(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name + ':':<{width + 1}} {value}".rstrip() for name, value in shown)


def format_fields(document: Mapping[str, Any]) -> str:
    """Return all that a document holds, a line each."""
    return format_pairs((_label(name), show_field(name, value)) for name, value in document.items())


def _label(name: str) -> str:
    name = name.replace("_bytes", "")
    return (name.removesuffix("_s") if not name.endswith("_per_s") else name).replace("_", " ")


def show_field(name: str, value: Any) -> str | None:
    """Return the value of a field, in the unit that its name tells."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if "_bytes" in name:
        return show_size(value)
    if name.endswith("_per_s"):
        return f"{value:.1f}"
    if name.endswith("_s"):
        return show_duration(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {show_field(key, item)}" for key, item in value.items()) or None
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    return str(value)


def terminal_width() -> int | None:
    """Return the columns of the terminal; None when stdout is none and COLUMNS does not say."""
    if not os.environ.get("COLUMNS", "").isdecimal() and not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def show_size(n_bytes: int | None) -> str | None:
    """Return a size in both units, None for none."""
    return None if n_bytes is None else show_bytes(n_bytes)


def show_duration(seconds: float | None) -> str | None:
    """Return a duration in its two largest units: `1h30m`, `2m5s`, `never`; None for none."""
    if seconds is None:
        return None
    if math.isinf(seconds):
        return "never"
    for unit_s in (86400, 3600, 60):
        if seconds >= unit_s:
            step_s = {86400: 3600, 3600: 60, 60: 1}[unit_s]
            return format_duration(seconds // step_s * step_s)
    return format_duration(round(seconds, 1) if seconds < 1 else int(seconds))


def show_path(path: str) -> str:
    """Return the path with the user's home folder as `~`."""
    home = os.path.expanduser("~")  # noqa: PTH111  (a text stays a text)
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path


def _finite(value: Any) -> Any:
    """Return *value* with infinite durations as the word the settings use: JSON has no infinity."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "never"
    return value


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _column(cells: Sequence[Sequence[str]], head: str) -> list[str]:
    place = cells[0].index(head)
    return [line[place] for line in cells[1:]]


def _without(cells: list[list[str]], head: str) -> list[list[str]]:
    gone = cells[0].index(head)
    return [line[:gone] + line[gone + 1 :] for line in cells]


def _fixed(cells: Sequence[Sequence[str]], names: frozenset[str]) -> frozenset[int]:
    """Return the places of the columns that are of no use when cut: names and numbers."""
    return frozenset(
        place for place, head in enumerate(cells[0]) if head in names or _is_numeric(line[place] for line in cells[1:])
    )


def _shrink(widths: list[int], limit: int, fixed: frozenset[int]) -> bool:
    """Take from the widest that are not *fixed* until all fit; False when they cannot."""
    while _total(widths) > limit:
        free = [place for place in range(len(widths)) if place not in fixed and widths[place] > _NARROWEST]
        if not free:
            return False
        widths[max(free, key=widths.__getitem__)] -= 1
    return True


def _fit(cell: str, width: int, *, to_the_right: bool) -> str:
    if len(cell) > width:
        return cell[: width - 3] + "..."
    return cell.rjust(width) if to_the_right else cell.ljust(width)


def _is_numeric(cells: Iterable[str]) -> bool:
    seen = [cell for cell in cells if cell != "-"]
    return bool(seen) and all(_NUMBER.fullmatch(cell) for cell in seen)


def show_time(unix_ms: int | None) -> str | None:
    """Return a moment in this machine's time zone; None for none."""
    return None if unix_ms is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_ms / 1000))
