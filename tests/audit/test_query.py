"""Questions to a real file: filters, pages that stay whole while rows come and go, sums held against plain Python."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlxd.audit import ChangeRecord, Filter, RequestRecord, RequestStatus
from mlxd.audit.query import read_page, read_stats
from mlxd.audit.record import Record
from mlxd.audit.schema import open_for_reading, open_for_writing
from mlxd.protocol.errors import InvalidRequest

ROWS = 900


def random_row(dice: random.Random, number: int) -> RequestRecord:
    """Return a request; several begin in the same millisecond."""
    status = dice.choice([RequestStatus.OK] * 8 + list(RequestStatus))
    return RequestRecord(
        request=f"r-{number}",
        started_ms=1_000_000 + dice.randrange(200),
        endpoint=dice.choice(["messages", "embeddings"]),
        route=dice.choice(["local", "cloud", None]),
        asked=f"name-{dice.randrange(3)}",
        model=dice.choice(["a", "b", None]),
        status=status,
        code=None if status is RequestStatus.OK else dice.choice(["oom", "x"]),
        completion_tokens=dice.choice([None, 5]),
        ttft_ms=dice.choice([None, dice.randrange(50)]),
        duration_ms=dice.randrange(5000),
        key=dice.choice([None, "k"]),
        cost_micro_usd=dice.choice([None, 3]),
    )


def insert(connection: sqlite3.Connection, rows: list[Any]) -> None:
    """Write rows of one kind."""
    kind: type[Record] = type(rows[0])
    marks = ", ".join("?" * len(kind.columns()))
    statement = f"INSERT INTO {kind.table} ({', '.join(kind.columns())}) VALUES ({marks})"
    connection.executemany(statement, [row.values() for row in rows])


@pytest.fixture(scope="module")
def rows() -> list[RequestRecord]:
    """The same random rows for all tests."""
    dice = random.Random(7)
    return [random_row(dice, number) for number in range(ROWS)]


@pytest.fixture
def writable(tmp_path: Path, rows: list[RequestRecord]) -> Iterator[sqlite3.Connection]:
    """A file with the rows and two changes."""
    with closing(open_for_writing(tmp_path / "audit.db")) as connection:
        insert(connection, rows)
        insert(connection, [ChangeRecord(5, "settings.set", "cli", 2, "pool.memory", "auto", ["x"], pid=7)] * 2)
        yield connection


@pytest.fixture
def log(writable: sqlite3.Connection, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """The same file, open for questions."""
    with closing(open_for_reading(tmp_path / "audit.db")) as connection:
        yield connection


def read_all(log: sqlite3.Connection, chosen: Filter, *, limit: int = 37, oldest_first: bool = False) -> list[str]:
    """Return the requests of all pages."""
    found: list[str] = []
    cursor = None
    while True:
        page = read_page(log, RequestRecord, chosen, limit=limit, cursor=cursor, oldest_first=oldest_first)
        assert len(page.rows) <= limit
        found += [row["request"] for row in page.rows]
        cursor = page.next
        if cursor is None:
            return found


FILTERS = [
    {},
    {"model": "a"},
    {"route": "cloud", "status": "ok"},
    {"status": "error", "code": "oom"},
    {"key": "k", "endpoint": "messages", "asked": "name-1"},
    {"since_ms": 1_000_050, "until_ms": 1_000_100},
    {"request": "r-5"},
    {"model": "nobody's"},
]


@pytest.mark.parametrize("oldest_first", [False, True])
@pytest.mark.parametrize("chosen", FILTERS)
def test_pages_are_what_a_filter_chooses(
    log: sqlite3.Connection, rows: list[RequestRecord], chosen: dict[str, Any], oldest_first: bool
) -> None:
    """All pages together are the rows that fit, each once, in the order of their starts."""
    fits = [(row.started_ms, number) for number, row in enumerate(rows) if _fits(row, chosen)]
    expected = [f"r-{number}" for _, number in sorted(fits, reverse=not oldest_first)]
    assert read_all(log, Filter(**chosen), oldest_first=oldest_first) == expected


def _fits(row: RequestRecord, chosen: dict[str, Any]) -> bool:
    named = {name: value for name, value in chosen.items() if not name.endswith("_ms")}
    shown = row.describe()
    return all(shown[name] == value for name, value in named.items()) and chosen.get(
        "since_ms", 0
    ) <= row.started_ms < chosen.get("until_ms", math.inf)


def test_a_cursor_is_a_place(writable: sqlite3.Connection, log: sqlite3.Connection, rows: list[RequestRecord]) -> None:
    """Rows that come, and a row at the place that goes, move nothing that is still to be read."""
    first = read_page(log, RequestRecord, Filter(), limit=100, cursor=None, oldest_first=False)
    everything = read_all(log, Filter())
    writable.execute("DELETE FROM requests WHERE request = ?", (everything[100],))
    insert(writable, [random_row(random.Random(1), 10**6)])
    writable.execute("UPDATE requests SET started_ms = 9999999 WHERE request = 'r-1000000'")
    second = read_page(log, RequestRecord, Filter(), limit=100, cursor=first.next, oldest_first=False)
    assert [row["request"] for row in second.rows] == everything[101:201]


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-", "-1", "1-x", "1-2-3", "9" * 50 + "-1", "1_0-1"])
def test_a_cursor_of_nobodys_is_refused(log: sqlite3.Connection, cursor: str) -> None:
    """Only what an answer has given is taken."""
    with pytest.raises(InvalidRequest, match="no cursor"):
        read_page(log, RequestRecord, Filter(), limit=1, cursor=cursor, oldest_first=False)


def test_changes_come_back_as_they_were(log: sqlite3.Connection) -> None:
    """Values of settings are values, not their text."""
    page = read_page(log, ChangeRecord, Filter(), limit=1, cursor=None, oldest_first=True)
    assert (page.rows[0]["old"], page.rows[0]["new"], page.rows[0]["runtime_only"]) == ("auto", ["x"], False)
    assert page.next == "5-2"


@pytest.mark.parametrize("chosen", FILTERS)
def test_sums_are_those_of_the_rows(log: sqlite3.Connection, rows: list[RequestRecord], chosen: dict[str, Any]) -> None:
    """Counts, tokens, costs and nearest-rank percentiles of each model and route."""
    fits = [row for row in rows if _fits(row, chosen)]
    stats = read_stats(log, Filter(**chosen))
    assert (stats["requests"], stats["every"]) == (len(fits), 1)
    assert {(group["model"], group["route"]) for group in stats["groups"]} == {(row.model, row.route) for row in fits}
    for group in stats["groups"]:
        mine = [row for row in fits if (row.model, row.route) == (group["model"], group["route"])]
        assert group["requests"] == len(mine)
        for status in RequestStatus:
            assert group[status.value] == sum(row.status is status for row in mine)
        for name in ("completion_tokens", "cost_micro_usd"):
            counted = [value for row in mine if (value := getattr(row, name)) is not None]
            assert group[name] == (sum(counted) if counted else None)
        for name in ("duration_ms", "ttft_ms"):
            values = sorted(value for row in mine if (value := getattr(row, name)) is not None)
            expected = {f"p{p}": values[math.ceil(len(values) * p / 100) - 1] if values else None for p in (50, 95, 99)}
            assert group[name] == expected


def test_a_sample_says_that_it_is_one(log: sqlite3.Connection, rows: list[RequestRecord]) -> None:
    """Over the bound every k-th row is looked at: counts stay exact, percentiles are those of rows that are there."""
    stats = read_stats(log, Filter(), exact_rows=100)
    assert (stats["requests"], stats["every"]) == (ROWS, 9)
    assert sum(group["requests"] for group in stats["groups"]) == ROWS
    looked_at = rows[::9]
    for group in stats["groups"]:
        mine = [row for row in looked_at if (row.model, row.route) == (group["model"], group["route"])]
        durations = sorted(row.duration_ms for row in mine)
        assert group["duration_ms"]["p50"] == durations[math.ceil(len(durations) / 2) - 1]


@pytest.mark.parametrize(
    ("chosen", "index"),
    [
        (Filter(), "requests_by_start"),
        (Filter(since_ms=1), "requests_by_start"),
        (Filter(model="a"), "requests_by_model"),
        (Filter(code="oom"), "requests_by_code"),
        (Filter(key="k"), "requests_by_key"),
        (Filter(status="timeout"), "requests_by_failure"),
    ],
)
def test_lists_need_no_sorting(log: sqlite3.Connection, chosen: Filter, index: str) -> None:
    """An index has the rows of every common filter in order, so that a page costs what it holds."""
    plans: list[str] = []
    log.set_trace_callback(plans.append)
    read_page(log, RequestRecord, chosen, limit=5, cursor="1000100-5", oldest_first=False)
    log.set_trace_callback(None)
    plan = " ".join(row["detail"] for row in log.execute(f"EXPLAIN QUERY PLAN {plans[-1]}"))
    assert index in plan
    assert "TEMP B-TREE" not in plan


def test_counts_read_an_index_alone(log: sqlite3.Connection) -> None:
    """The counts of `stats` do not touch the table."""
    plans: list[str] = []
    log.set_trace_callback(plans.append)
    read_stats(log, Filter(since_ms=1_000_050))
    log.set_trace_callback(None)
    (counted,) = [plan for plan in plans if "count(*) FROM requests" in plan]
    plan = " ".join(row["detail"] for row in log.execute(f"EXPLAIN QUERY PLAN {counted}"))
    assert "COVERING INDEX requests_by_group" in plan
