"""Everything that mlxctl prints: tables, sizes, errors, and the one JSON document of `--json`.

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
    _print_json(document, indent=2)


def print_json_line(document: Mapping[str, Any]) -> None:
    """Write one of many JSON documents to stdout, on a line of its own."""
    _print_json(document, separators=(",", ":"))


def _print_json(document: Mapping[str, Any], **layout: Any) -> None:
    import json

    plain = {"schema": SCHEMA, **_finite(dict(document))}
    print(json.dumps(plain, ensure_ascii=False, allow_nan=False, **layout), flush=True)


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
    rows: Sequence[Any],
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
    table = [[head, *(_cell(row, read) for row in rows)] for head, read in columns]
    limit = terminal_width() if width is None else width
    whole = names or [head for head, _ in columns[:1]]
    if limit is not None:
        present = [column for head in optional for column in table if column[0] == head]
        for column in present:
            if _total(_widths(table)) > limit and set(column[1:]) == {"-"}:
                table = [kept for kept in table if kept is not column]
        for column in present:
            if any(kept is column for kept in table) and not _shrink(table, _widths(table), limit, whole):
                table = [kept for kept in table if kept is not column]
    widths = _widths(table)
    if limit is not None and not _shrink(table, widths, limit, whole):
        _shrink(table, widths, limit, None)
    shown = [
        [_fit(cell, column_width, to_the_right=_is_numeric(column[1:])) for cell in column]
        for column, column_width in zip(table, widths, strict=True)
    ]
    return "\n".join(_GAP.join(line).rstrip() for line in zip(*shown, strict=True))


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


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in table]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def _shrink(table: Sequence[Sequence[str]], widths: list[int], limit: int, whole: Sequence[str] | None) -> bool:
    """Take from the widest of the *widths* until all fit; False when they cannot.

    Columns that are of no use when cut are left alone, those called *whole* and numbers; with None they are not.
    """
    free = [
        place
        for place, column in enumerate(table)
        if whole is None or (column[0] not in whole and not _is_numeric(column[1:]))
    ]
    while _total(widths) > limit:
        widest = max(free, key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= _NARROWEST:
            return False
        widths[widest] -= 1
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
