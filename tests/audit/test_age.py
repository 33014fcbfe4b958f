"""Rows are old by a clock that goes evenly; one that jumps deletes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mlxd.audit import ChangeRecord, RequestRecord
from mlxd.audit.age import AFTER_JUMP_S, AFTER_START_S, JUMP_S, AgeClock, read_steady_s
from mlxd.audit.retention import Limits
from mlxd.audit.schema import open_for_writing
from mlxd.audit.writer import Writer

NOW_S = 1_700_000_000.0
DAY_S = 86_400.0


class Clocks:
    """A wall clock that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = NOW_S, 50.0
        self.age = AgeClock(lambda: self.wall_s, lambda: self.steady_s)

    def pass_time(self, seconds: float) -> None:
        """Let both go on."""
        self.wall_s += seconds
        self.steady_s += seconds


@pytest.fixture
def clocks() -> Clocks:
    """Both clocks."""
    return Clocks()


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """An empty log."""
    with closing(open_for_writing(tmp_path / "audit.db")) as opened:
        yield opened


def begin(connection: sqlite3.Connection, table: str, started_s: float) -> None:
    """Put a row that began then into the log."""
    record = (
        RequestRecord("r", int(started_s * 1000), "chat/completions")
        if table == "requests"
        else ChangeRecord(int(started_s * 1000), "o", "cli", 1)
    )
    marks = ", ".join("?" * len(record.columns()))
    connection.execute(f"INSERT INTO {table} ({', '.join(record.columns())}) VALUES ({marks})", record.values())


def test_an_even_clock_is_trusted_at_once(clocks: Clocks, connection: sqlite3.Connection) -> None:
    """Also over a night in which the machine slept, and when it is a little off."""
    assert clocks.age.read_ms(connection) == int(NOW_S * 1000)
    clocks.pass_time(8 * 3600)
    clocks.wall_s += JUMP_S
    assert clocks.age.read_ms(connection) == int(clocks.wall_s * 1000)


@pytest.mark.parametrize("jump_s", [31 * DAY_S, -2 * DAY_S, JUMP_S + 1])
def test_after_a_jump_it_has_to_go_evenly_for_a_day(
    clocks: Clocks, connection: sqlite3.Connection, jump_s: float
) -> None:
    """However soon the clock is put right again, which is another jump."""
    clocks.age.read_ms(connection)
    for _ in range(2):
        clocks.pass_time(60)
        clocks.wall_s += jump_s
        assert clocks.age.read_ms(connection) is None
        jump_s = -jump_s
    clocks.pass_time(AFTER_JUMP_S - 1)
    assert clocks.age.read_ms(connection) is None
    clocks.pass_time(1)
    assert clocks.age.read_ms(connection) == int(clocks.wall_s * 1000)


@pytest.mark.parametrize("table", ["requests", "changes"])
@pytest.mark.parametrize(("since_s", "is_trusted"), [(DAY_S, True), (DAY_S + 1, False), (-DAY_S - 1, False)])
def test_a_start_far_from_the_newest_row_waits_an_hour(
    clocks: Clocks, connection: sqlite3.Connection, table: str, since_s: float, *, is_trusted: bool
) -> None:
    """A clock that is wrong when the machine starts is set within that time, and a real pause costs an hour."""
    begin(connection, "requests", NOW_S - 90 * DAY_S)
    begin(connection, table, NOW_S - since_s)
    assert (clocks.age.read_ms(connection) is not None) is is_trusted
    clocks.pass_time(AFTER_START_S - 1)
    assert (clocks.age.read_ms(connection) is not None) is is_trusted
    clocks.pass_time(1)
    assert clocks.age.read_ms(connection) == int(clocks.wall_s * 1000)


def test_a_jump_of_the_clock_deletes_no_row(tmp_path: Path, clocks: Clocks) -> None:
    """The writer keeps everything that only the jump made old, and deletes by size as ever."""
    path = tmp_path / "audit.db"
    writer = Writer(path, Limits(30 * DAY_S, 1 << 30), now=lambda: clocks.wall_s, steady=lambda: clocks.steady_s)
    writer.start()
    writer.put(RequestRecord("r", int(NOW_S * 1000), "chat/completions"))
    assert writer.flush(30)
    clocks.wall_s += 31 * DAY_S
    writer.set_limits(Limits(29 * DAY_S, 1 << 30))
    assert writer.flush(30)
    writer.close()
    with closing(sqlite3.connect(path)) as asking:
        assert asking.execute("SELECT count(*) FROM requests").fetchone() == (1,)


def test_the_steady_clock_goes_on() -> None:
    """It never goes back."""
    first = read_steady_s()
    assert read_steady_s() >= first
