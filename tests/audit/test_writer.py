"""The writer against a real SQLite file: what is written, kept, moved aside, and what happens when it cannot be."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlxd.audit import ChangeRecord, RequestRecord
from mlxd.audit.record import Record
from mlxd.audit.retention import Limits
from mlxd.audit.schema import MIGRATIONS, open_for_writing
from mlxd.audit.writer import Writer

KEPT = Limits(age_s=86400, size_bytes=1 << 30)
NOW_S = 1_700_000_000.0
WAIT_S = 30


def row(number: int = 0, **more: object) -> RequestRecord:
    """Return a request that began just now."""
    told = {"request": f"r-{number}", "started_ms": int(NOW_S * 1000) + number, "endpoint": "chat/completions"}
    return RequestRecord(**(told | more))  # type: ignore[arg-type]


@contextmanager
def writing(path: Path, limits: Limits = KEPT, **options: object) -> Iterator[Writer]:
    """Run a writer that tries again soon."""
    writer = Writer(path, limits, now=lambda: NOW_S, retry_s=(0.01, 0.01), **options)  # type: ignore[arg-type]
    writer.start()
    try:
        yield writer
    finally:
        writer.close()


def ask(path: Path, query: str) -> list[tuple[Any, ...]]:
    """Return what a query of another connection sees."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def put_all(writer: Writer, rows: list[Record]) -> None:
    """Queue the rows and wait until they are written."""
    for one in rows:
        writer.put(one)
    assert writer.flush(WAIT_S)


def test_rows_are_written_as_they_are(tmp_path: Path) -> None:
    """Both kinds come out as they went in, in a file that only its owner reads."""
    path = tmp_path / "audit.db"
    attempts = ({"target": "p/m", "status": 500, "code": "x", "ms": 3},)
    with writing(path) as writer:
        put_all(writer, [row(1, attempts=attempts, ttft_ms=0, tokens_per_s=1.5), ChangeRecord(5, "o", "cli", 2, "k")])
        assert (writer.state.written, writer.state.queued, writer.state.dropped) == (2, 0, 0)
    assert ask(path, "SELECT request, attempts, ttft_ms, tokens_per_s, code FROM requests") == [
        ("r-1", '[{"target":"p/m","status":500,"code":"x","ms":3}]', 0, 1.5, None)
    ]
    assert ask(path, "SELECT started_ms, operation, source, generation, setting FROM changes") == [
        (5, "o", "cli", 2, "k")
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_a_client_sent_is_always_written(tmp_path: Path) -> None:
    """Text that is no UTF-8 and numbers that no column holds cost no row."""
    path = tmp_path / "audit.db"
    with writing(path) as writer:
        put_all(writer, [row(model="\udcff'; DROP TABLE requests", prompt_tokens=10**30), row(2)])
    assert ask(path, "SELECT model, prompt_tokens FROM requests ORDER BY id") == [
        ("\\udcff'; DROP TABLE requests", 2**63 - 1),
        (None, None),
    ]


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    """While another process holds the file, rows wait, the rest is counted; then those that wait are written."""
    path = tmp_path / "audit.db"
    with writing(path, queue_rows=3) as writer:
        put_all(writer, [row(0)])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writer.put(row(1))
            assert not writer.flush(WAIT_S)
            for number in range(2, 7):
                writer.put(row(number))
            state = writer.state
            assert state.problem is not None
            assert "locked" in state.problem
            assert state.dropped >= 2
            other.execute("ROLLBACK")
        assert writer.flush(WAIT_S)
        assert (writer.state.problem, writer.state.queued) == (None, 0)
        assert writer.state.written + writer.state.dropped == 7
    assert len(ask(path, "SELECT id FROM requests")) == 7 - state.dropped


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What SQLite says of a disk without room is the problem; with room again everything is written."""
    path = tmp_path / "audit.db"
    full = sqlite3.OperationalError("database or disk is full")
    with writing(path) as writer:
        put_all(writer, [row(0)])
        monkeypatch.setattr(writer, "_write", _raise(full))
        writer.put(row(1))
        assert not writer.flush(WAIT_S)
        assert writer.state.problem == "audit.db: database or disk is full"
        monkeypatch.undo()
        assert writer.flush(WAIT_S)
        assert writer.state == dataclasses.replace(writer.state, problem=None, written=2, dropped=0)


def test_what_waits_for_the_disk_is_written_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that ends tries once more, however long the pause would be: with room again nothing is lost."""
    path = tmp_path / "audit.db"
    writer = Writer(path, KEPT, now=lambda: NOW_S, retry_s=(3600.0, 3600.0))
    writer.start()
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write", _raise(sqlite3.OperationalError("database or disk is full")))
        writer.put(row(1))
        assert not writer.flush(WAIT_S)
    writer.close()
    assert (writer.state.written, writer.state.queued, writer.state.dropped) == (1, 0, 0)


def test_the_disk_is_tried_again_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has room now and then is not missed for a minute."""
    writer = Writer(tmp_path / "gone" / "audit.db", KEPT)
    pauses: list[float] = []
    changed = writer._changed
    wait = changed.wait

    def note(timeout: float | None = None) -> bool:
        if writer._problem is not None and threading.current_thread() is writer._thread:
            pauses.append(timeout or 0.0)
            return wait(0.001)
        return wait(timeout)

    monkeypatch.setattr(changed, "wait", note)
    writer.start()
    writer.put(row(1))
    while len(pauses) < 8:
        writer.flush(0.01)
    writer.close()
    assert max(pauses) == 5.0


def _raise(error: Exception) -> object:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file that cannot be made is a problem until it can."""
    path = tmp_path / "gone" / "audit.db"
    with writing(path) as writer:
        writer.put(row())
        assert not writer.flush(WAIT_S)
        assert writer.state.problem == "audit.db: No such file or directory"
        path.parent.mkdir()
        assert writer.flush(WAIT_S)
        assert writer.state.written == 1


@pytest.mark.parametrize("damage", ["all", "page"])
def test_a_broken_file_is_moved_aside(tmp_path: Path, damage: str) -> None:
    """A file that is no database, or has broken pages, is kept under another name, and rows go into a new one."""
    path = tmp_path / "audit.db"
    if damage == "all":
        path.write_bytes(b"this is no database, " * 1000)
    else:
        with writing(path) as writer:
            put_all(writer, [row(number) for number in range(200)])
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        path.write_bytes(content)
    with writing(path) as writer:
        put_all(writer, [row(1)])
        assert writer.state.problem is None
    aside = [found.name for found in tmp_path.iterdir() if found.name.startswith("audit.db.corrupt-")]
    assert aside == ["audit.db.corrupt-20231114T221320Z"]
    assert ask(path, "SELECT request FROM requests") == [("r-1",)]


def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """Nothing is written into a file that nobody can find any more."""
    path = tmp_path / "audit.db"
    with writing(path) as writer:
        put_all(writer, [row(1)])
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        put_all(writer, [row(2)])
    assert ask(path, "SELECT request FROM requests") == [("r-2",)]


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_every_older_file_is_brought_up(tmp_path: Path, version: int) -> None:
    """Rows of a file of any version are kept, and new ones can be written."""
    path = tmp_path / "audit.db"
    with closing(open_for_writing(path, MIGRATIONS[:version])) as old:
        if version:
            old.execute(
                "INSERT INTO requests (request, started_ms, endpoint, status, duration_ms)"
                " VALUES ('old', ?, 'e', 'ok', 1)",
                (int(NOW_S * 1000),),
            )
    with writing(path) as writer:
        put_all(writer, [row(1, key="k", cost_micro_usd=3, noise_removed={"a-rule": 2}, ignored=("a", "b"))])
    names = [name for (name,) in ask(path, "SELECT request FROM requests ORDER BY id")]
    assert names == ["old", "r-1"][0 if version else 1 :]
    kept = ask(path, "SELECT noise_removed, ignored FROM requests WHERE request = 'r-1'")
    assert kept == [('{"a-rule":2}', '["a","b"]')]
    assert ask(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert {name for _, name, *_ in ask(path, "PRAGMA table_info(requests)")} == {"id", *RequestRecord.columns()}
    assert {name for _, name, *_ in ask(path, "PRAGMA table_info(changes)")} == {"id", *ChangeRecord.columns()}
    assert ask(path, "PRAGMA auto_vacuum") == [(2,)]


def test_a_newer_file_is_left_alone(tmp_path: Path) -> None:
    """Nothing is written into it, and the reason is told with both numbers."""
    path = tmp_path / "audit.db"
    with closing(open_for_writing(path)) as newer:
        newer.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with writing(path) as writer:
        writer.put(row())
        assert not writer.flush(WAIT_S)
        assert writer.state.problem is not None
        assert f"schema 99, this one knows up to {len(MIGRATIONS)}" in writer.state.problem
    assert (path.read_bytes(), writer.state.dropped) == (before, 1)


def test_a_failed_migration_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """A migration is done as a whole or not at all."""
    path = tmp_path / "audit.db"
    open_for_writing(path).close()
    with pytest.raises(sqlite3.OperationalError):
        open_for_writing(path, [*MIGRATIONS, ["CREATE TABLE more (a)", "no SQL"]])
    assert ask(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert ask(path, "SELECT name FROM sqlite_master WHERE name = 'more'") == []


def test_age_deletes_what_is_older_and_nothing_else(tmp_path: Path) -> None:
    """Rows and changes over the age go; the rest stays. A longer age brings nothing back, none deletes nothing."""
    path = tmp_path / "audit.db"
    begun_ms = int(NOW_S * 1000)
    rows: list[Record] = [row(number, started_ms=begun_ms - number * 1000) for number in range(1200)]
    with writing(path, Limits(float("inf"), 1 << 30)) as writer:
        put_all(writer, [*rows, ChangeRecord(begun_ms - 10**6, "o", "cli", 1), ChangeRecord(begun_ms, "o", "cli", 1)])
        assert len(ask(path, "SELECT id FROM requests")) == 1200
        writer.set_limits(Limits(100, 1 << 30))
        assert writer.flush(WAIT_S)
    assert ask(path, "SELECT count(*), min(started_ms) FROM requests") == [(101, begun_ms - 100_000)]
    assert ask(path, "SELECT count(*) FROM changes") == [(1,)]


def test_the_size_is_kept(tmp_path: Path) -> None:
    """The file with its write-ahead log never grows over the limit; the oldest rows go, as many as needed."""
    path = tmp_path / "audit.db"
    limit = 8 << 20
    most = 0
    with writing(path, Limits(float("inf"), limit)) as writer:
        for begin in range(0, 30_000, 3000):
            put_all(writer, [row(number, model=f"m-{number % 7}" * 20) for number in range(begin, begin + 3000)])
            most = max(most, sum(found.stat().st_size for found in tmp_path.iterdir()))
    (found,) = ask(path, "SELECT count(*), max(started_ms) - min(started_ms) + 1 FROM requests")
    assert most <= limit
    assert found[0] == found[1]  # no holes: the oldest went
    assert 3000 < found[0] < 30_000
    assert path.stat().st_size > limit // 4  # and no more than needed


def test_a_killed_process_loses_the_last_batch_at_most(tmp_path: Path) -> None:
    """What was said to be written is there after SIGKILL, and the file is sound."""
    path = tmp_path / "audit.db"
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.audit.test_writer import *\n"
        "writer = Writer(Path(sys.argv[1]), KEPT, now=lambda: NOW_S)\nwriter.start()\n"
        "for number in range(10**6):\n"
        "    writer.put(row(number))\n"
        "    if number % 100 == 99 and writer.flush(30): print(number + 1, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = [child.stdout.readline() for _ in range(5)]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")
    told = int([*said, *(line for line in rest if line.strip())][-1])
    with writing(path) as writer:
        put_all(writer, [row(-1)])
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    kept = ask(path, "SELECT count(*) FROM requests WHERE request <> 'r--1'")[0][0]
    assert told <= kept <= told + 200
    assert os.path.exists(path)  # noqa: PTH110


def test_rows_are_written_once_when_old_ones_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failure is shown and tried again, but what was committed is not put back."""
    path = tmp_path / "audit.db"
    with writing(path) as writer:
        monkeypatch.setattr("mlxd.audit.retention.step", _raise(sqlite3.OperationalError("disk I/O error")))
        writer.put(row(1))
        assert not writer.flush(WAIT_S)
        assert (writer.state.problem, writer.state.written) == ("audit.db: disk I/O error", 1)
        monkeypatch.undo()
        assert writer.flush(WAIT_S)
        assert (writer.state.problem, writer.state.written, writer.state.dropped) == (None, 1, 0)
    assert ask(path, "SELECT request FROM requests") == [("r-1",)]
