"""Questions to `audit.db`: rows by filters in pages, and sums with percentiles. Reads only, on whatever thread asks.

Sums of more than `EXACT_ROWS` requests: how many there were, by their ends, is counted exactly, in an index that holds
it in order. Percentiles and tokens are then those of every k-th row by id, which is about `EXACT_ROWS` of them, and the
answer says k. A row is as likely to be chosen as any other, whenever it was written.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.audit.record import Record, read_row
from mlxd.protocol.errors import InvalidRequest

EXACT_ROWS = 50_000
PERCENTILES = (50, 95, 99)
_METRICS = ("duration_ms", "ttft_ms")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which requests are meant; None does not choose."""

    model: str | None = None  # that answered, or was asked last
    asked: str | None = None
    route: str | None = None
    status: str | None = None
    code: str | None = None
    endpoint: str | None = None
    target: str | None = None
    key: str | None = None
    request: str | None = None
    since_ms: int | None = None  # by their start
    until_ms: int | None = None  # before it

    def conditions(self) -> tuple[list[str], list[Any]]:
        """Return SQL conditions and the values that are bound in them."""
        named = {
            name: getattr(self, name)
            for name in ("model", "asked", "route", "status", "code", "endpoint", "target", "key", "request")
        }
        given = [(f"{name} = ?", value) for name, value in named.items() if value is not None]
        if self.status not in {None, "ok"}:
            given.append(("status <> ?", "ok"))
        if self.since_ms is not None:
            given.append(("started_ms >= ?", self.since_ms))
        if self.until_ms is not None:
            given.append(("started_ms < ?", self.until_ms))
        return [condition for condition, _ in given], [value for _, value in given]


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, at most as many as were asked for, and where the next ones begin."""

    rows: list[dict[str, Any]]
    next: str | None


def read_page(
    connection: sqlite3.Connection,
    kind: type[Record],
    chosen: Filter,
    *,
    limit: int,
    cursor: str | None,
    oldest_first: bool,
) -> Page:
    """Return rows in the order of their starts; a cursor is a place in it, wherever rows come and go meanwhile.

    Raises:
        InvalidRequest: the cursor is none.
    """
    conditions, values = chosen.conditions()
    direction, comparison = ("ASC", ">=") if oldest_first else ("DESC", "<=")
    if cursor is not None:
        conditions.append(f"(started_ms, id) {comparison} (?, ?)")
        values += _parse_cursor(cursor)
    statement = (
        f"SELECT * FROM {kind.table} {_where(conditions)}"  # noqa: S608  (names of ours, values are bound)
        f" ORDER BY started_ms {direction}, id {direction} LIMIT ?"
    )
    rows = connection.execute(statement, (*values, limit + 1)).fetchall()
    shown = [read_row(kind, row) for row in rows[:limit]]
    further = rows[limit] if len(rows) > limit else None
    return Page(shown, None if further is None else format_cursor(further))


def format_cursor(row: Mapping[str, Any] | sqlite3.Row) -> str:
    """Return the place of a row."""
    return f"{row['started_ms']}-{row['id']}"


def _parse_cursor(cursor: str) -> tuple[int, int]:
    started, dash, row_id = cursor.partition("-")
    if not (dash and started.isdecimal() and row_id.isdecimal() and len(cursor) <= 40):
        raise InvalidRequest("this is no cursor of an earlier answer", param="cursor")
    return int(started), int(row_id)


def _where(conditions: list[str]) -> str:
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def read_stats(connection: sqlite3.Connection, chosen: Filter, exact_rows: int = EXACT_ROWS) -> dict[str, Any]:
    """Return {requests, every, groups}: sums per model and route, the most frequent first.

    `every` is k of the sample (see the module), 1 when all rows were looked at.
    """
    connection.execute("BEGIN")  # one snapshot for all that follows
    try:
        counts = _count(connection, chosen)
        total = sum(sum(by_status.values()) for by_status in counts.values())
        every = max(1, math.ceil(total / exact_rows))
        _choose(connection, chosen, every)
        sums = _sum(connection)
        groups = [
            {
                "model": model,
                "route": route,
                "requests": sum(by_status.values()),
                **{status: by_status.get(status, 0) for status in ("ok", "error", "cancelled", "timeout")},
                **sums.get((model, route), _NOTHING),
            }
            for (model, route), by_status in counts.items()
        ]
    finally:
        connection.execute("ROLLBACK")
    groups.sort(key=lambda group: -group["requests"])
    return {"requests": total, "every": every, "groups": groups}


Group = tuple[str | None, str | None]
_SUMS = ("prompt_tokens", "cached_tokens", "completion_tokens", "cost_micro_usd")
_NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(_SUMS),
    "tokens_per_s": None,
    **{metric: {f"p{percent}": None for percent in PERCENTILES} for metric in _METRICS},
}


def _count(connection: sqlite3.Connection, chosen: Filter) -> dict[Group, dict[str, int]]:
    conditions, values = chosen.conditions()
    statement = (
        f"SELECT model, route, status, count(*) FROM requests {_where(conditions)}"  # noqa: S608
        " GROUP BY model, route, status"
    )
    counts: dict[Group, dict[str, int]] = {}
    for model, route, status, number in connection.execute(statement, values):
        counts.setdefault((model, route), {})[status] = number
    return counts


def _choose(connection: sqlite3.Connection, chosen: Filter, every: int) -> None:
    """Put the rows that are looked at into a table of this connection."""
    conditions, values = chosen.conditions()
    source, bound = "requests", []
    if every > 1:
        first, last = connection.execute("SELECT min(id), max(id) FROM requests").fetchone()
        source = (
            "(WITH RECURSIVE place(id) AS (SELECT ? UNION ALL SELECT id + ? FROM place WHERE id + ? <= ?)"
            " SELECT requests.* FROM place CROSS JOIN requests USING (id))"
        )
        bound = [first, every, every, last]
    names = ", ".join(("model", "route", "tokens_per_s", *_SUMS, *_METRICS))
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(
        f"CREATE TEMP TABLE chosen AS SELECT {names} FROM {source} {_where(conditions)}",  # noqa: S608
        (*bound, *values),
    )


def _sum(connection: sqlite3.Connection) -> dict[Group, dict[str, Any]]:
    sums: dict[Group, dict[str, Any]] = {}
    totals = ", ".join(f"sum({name})" for name in _SUMS)
    statement = f"SELECT model, route, avg(tokens_per_s), {totals} FROM chosen GROUP BY model, route"  # noqa: S608
    for model, route, speed, *values in connection.execute(statement):
        sums[model, route] = {**_NOTHING, **dict(zip(_SUMS, values, strict=True)), "tokens_per_s": speed}
    for metric in _METRICS:
        for group, shown in _percentiles(connection, metric):
            sums[group][metric] = shown
    return sums


def _percentiles(connection: sqlite3.Connection, metric: str) -> Iterator[tuple[Group, dict[str, int]]]:
    """Yield the nearest-rank percentiles of each group."""
    statement = (
        "SELECT model, route, value, place, size FROM (SELECT model, route,"  # noqa: S608
        f" {metric} AS value, row_number() OVER ordered AS place,"
        " count(*) OVER (PARTITION BY model, route) AS size"
        f" FROM chosen WHERE {metric} IS NOT NULL WINDOW ordered AS (PARTITION BY model, route ORDER BY {metric}))"
        f" WHERE place IN ({', '.join(f'(size * {percent} + 99) / 100' for percent in PERCENTILES)})"
        " ORDER BY model, route"
    )
    shown: dict[Group, dict[str, int]] = {}
    for model, route, value, place, size in connection.execute(statement):
        group = shown.setdefault((model, route), {})
        group |= {f"p{percent}": value for percent in PERCENTILES if place == (size * percent + 99) // 100}
    yield from shown.items()
