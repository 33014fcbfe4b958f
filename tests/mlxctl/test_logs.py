"""The daemon's log as `mlxctl logs` shows it: the last records, levels, rotations, another daemon's stderr."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxctl import logs
from mlxctl.call import Call
from mlxctl.cli import main
from mlxctl.logs import Follower, group_lines, read_last
from mlxctl.verb import Options
from mlxd import log
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

INFO = "2026-01-31T12:00:00.123Z info    loaded a"
WARNING = "2026-01-31T12:00:01.000Z warning port 6593 is taken"
ERROR = "2026-01-31T12:00:02.000Z error   it failed"
TRACE = ["Traceback (most recent call last):", '  File "x.py", line 1']
FOREGROUND = "a daemon that runs in the foreground logs on its stderr"
DEBUG = "2026-01-31T12:00:03.000Z debug   a detail"


@pytest.fixture
def home(own_home: None) -> Home:
    """A home with a log of four records, one of them with a traceback."""
    home = Home.from_environment()
    home.logs.mkdir(parents=True)
    write(home.log, INFO, WARNING, ERROR, *TRACE, DEBUG)
    return home


def write(path: Path, *lines: str) -> None:
    """Append lines."""
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([], [INFO, WARNING, ERROR, *TRACE, DEBUG]),
        (["-n", "2"], [ERROR, *TRACE, DEBUG]),
        (["-n", "0"], []),
        (["--level", "warning"], [WARNING, ERROR, *TRACE]),
        (["--level", "info", "-n", "1"], [ERROR, *TRACE]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_last_records(home: Home, options: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The last records of a level are shown, each with its traceback, with no daemon and not a word about that."""
    assert main(["logs", *options]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == lines
    assert printed.err == ""


def test_lines_that_the_daemon_writes_are_understood(home: Home) -> None:
    """What `mlxd/log.py` writes is what is read here, level for level."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    try:
        log.configure("debug", home.logs / "fresh.log")
        for level in ("debug", "info", "warning", "error", "critical"):
            root.log(logging.getLevelName(level.upper()), "of %s", level)
        root.handlers[0].close()
    finally:
        root.handlers[:], root.level = before
    records = list(group_lines((home.logs / "fresh.log").read_text().splitlines()))
    assert [(record.level, record.message) for record in records] == [
        (level, f"of {level}") for level in ("debug", "info", "warning", "error", "critical")
    ]


def test_rotated_files_fill_up(home: Home) -> None:
    """Right after a rotation the records before it are still the last."""
    home.log.rename(home.log.with_name("mlxd.log.1"))
    write(home.log, INFO)
    assert [record.text for record in read_last(home.log, 2, "debug")] == [DEBUG, INFO]
    assert len(read_last(home.log, 99, "debug")) == 5


def test_json_is_a_document_a_line(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` each record is a document of its own with time, level and message."""
    assert main(["logs", "--json", "-n", "2"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(document["schema"], document["level"]) for document in documents] == [
        ("mlxctl/v1", "error"),
        ("mlxctl/v1", "debug"),
    ]
    assert documents[0]["message"].splitlines() == ["it failed", *TRACE]


def test_follower_loses_nothing(home: Home) -> None:
    """Lines come whole: over a rotation, a file that is not there for a moment, one that somebody emptied."""
    with Follower(home.log) as follower:
        assert follower.read_lines() == []
        with home.log.open("a") as file:
            file.write(INFO[:10])
            file.flush()
            assert follower.read_lines() == []
            file.write(INFO[10:] + "\n")
        home.log.rename(home.log.with_name("mlxd.log.1"))
        assert follower.read_lines() == [INFO]
        write(home.log, WARNING)
        assert follower.read_lines() == [WARNING]
        home.log.write_text("")
        assert follower.read_lines() == []
        write(home.log, ERROR)
        assert follower.read_lines() == [ERROR]


def test_follow(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Following shows what is added from its level on, with what belongs to it, until it is interrupted."""
    steps: Iterator[list[str]] = iter([[INFO, ERROR], TRACE, [DEBUG, "and more of it"]])

    def sleep(seconds: float) -> None:
        for_now = next(steps, None)
        if for_now is None:
            raise KeyboardInterrupt
        write(home.log, *for_now)

    with Follower(home.log) as follower, pytest.raises(KeyboardInterrupt):
        logs._follow(Call(Options()), follower, "warning", sleep)
    assert capsys.readouterr().out.splitlines() == [ERROR, *TRACE]


def test_no_log(own_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no daemon ever logged to a file, that is said, and why it may be, with status 4."""
    assert main(["logs"]) == 4
    assert capsys.readouterr().err.splitlines() == [
        f"error: there is no log: {Home.from_environment().log} does not exist; {FOREGROUND}",
        "  try: mlxctl start, whose daemon logs there",
        "  code: logs.none",
    ]


@pytest.mark.parametrize(
    ("where", "note"),
    [
        (None, "note: the daemon that runs (pid 7) logs on its stderr; what follows is of earlier ones\n"),
        ("/elsewhere/mlxd.log", "note: the daemon that runs (pid 7) logs to /elsewhere/mlxd.log\n"),
    ],
    ids=["stderr", "elsewhere"],
)
def test_daemon_that_logs_elsewhere(
    home: Home, where: str | None, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon that does not write this file is named, so that nobody waits for its lines here."""
    with FakeControl(home.socket, {"daemon.show": {"pid": 7, "log": where}}):
        assert main(["logs", "-n", "1"]) == 0
    assert capsys.readouterr() == (f"{DEBUG}\n", note)


def test_hanging_daemon_does_not_keep_its_log(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log is read when the daemon does not answer: that is when it is wanted."""
    monkeypatch.setattr(logs, "_ASK_TIMEOUT_S", 0.05)
    release = threading.Event()

    def hang(frame: dict[str, object]) -> dict[str, object]:
        release.wait(30)
        return {"pid": 7, "log": None}

    with FakeControl(home.socket, {"daemon.show": hang}):
        assert main(["logs", "-n", "1"]) == 0
        release.set()
    assert capsys.readouterr() == (f"{DEBUG}\n", "")
