"""What the download program writes while it works."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from mlxd.download.errors import DiskFull, from_os_error
from mlxd.download.progress import JsonReporter, PlainReporter, Pulled
from mlxd.protocol.errors import ControlError


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock moved by hand."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_json_lines() -> None:
    """Each event is one line, as mlxctl reads it."""
    stream = io.StringIO()
    reporter = JsonReporter(stream)
    reporter.progress("downloading", 1, None)
    reporter.note("words")
    reporter.done(Pulled("id", Path("/x"), already=True))
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "progress", "phase": "downloading", "done": 1, "total": None},
        {"event": "note", "msg": "words"},
        {"event": "done", "id": "id", "path": "/x", "already": True},
    ]


def test_json_error_is_what_mlxctl_rebuilds() -> None:
    """An error keeps its words, hint, code and exit status on the way to mlxctl."""
    stream = io.StringIO()
    JsonReporter(stream).error(DiskFull("full", hint="free some"))
    rebuilt = ControlError.from_wire(json.loads(stream.getvalue()))
    assert (rebuilt.message, rebuilt.hint, rebuilt.code, rebuilt.exit_code) == (
        "full",
        "free some",
        "download.disk_full",
        DiskFull.exit_code,
    )


def test_throttle() -> None:
    """Of many small steps the first, the last, a few in between, and each new phase get through."""
    stream, clock = io.StringIO(), Clock()
    reporter = JsonReporter(stream, clock)
    for done in range(1001):
        reporter.progress("downloading", done, 100_000 if done < 1000 else 1000)
        clock.now_s += 0.04
    reporter.progress("checking", 1, 100)
    shown = [(event["phase"], event["done"]) for event in map(json.loads, stream.getvalue().splitlines())]
    assert shown[:3] == [("downloading", 0), ("downloading", 3), ("downloading", 6)]
    assert shown[-2:] == [("downloading", 1000), ("checking", 1)]
    assert len(shown) == 1 + 333 + 1 + 1


def test_big_steps_show_at_once() -> None:
    """A step of some percent is shown however soon it comes, since the next may stand still; no step, not at all."""
    stream, clock = io.StringIO(), Clock()
    reporter = JsonReporter(stream, clock)
    for done in (0, 1, 40, 41, 80):
        reporter.progress("downloading", done, 100)
    clock.now_s = 9
    reporter.progress("downloading", 80, 100)
    assert [json.loads(line)["done"] for line in stream.getvalue().splitlines()] == [0, 40, 80]


def test_words_on_a_terminal() -> None:
    """One line moves per phase, and what follows stands on a line of its own."""
    stream, clock = Terminal(), Clock()
    reporter = PlainReporter(stream, clock)
    for done in (0, 50_000_000, 100_000_000):
        reporter.progress("downloading", done, 100_000_000)
        clock.now_s += 1
    reporter.progress("converting", 5_000_000, None)
    reporter.done(Pulled("id", Path("/x"), already=False))
    assert [line.rpartition("\x1b[K")[2] for line in stream.getvalue().split("\n")] == [
        "downloading  100 %  100.0 of 100.0 MB",
        "converting  5.0 MB (4.8 MiB)",
        "id is ready: /x",
        "",
    ]


def test_words_in_a_file() -> None:
    """Without a terminal there are no control characters and few lines."""
    stream, clock = io.StringIO(), Clock()
    reporter = PlainReporter(stream, clock)
    for done in range(100):
        reporter.progress("downloading", done, 100)
        clock.now_s += 1
    reporter.note("words")
    reporter.error(DiskFull("full", hint="free some"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20 + 4
    assert "\x1b" not in stream.getvalue()
    assert lines[-4:] == ["note: words", "error: full", "  try: free some", "  code: download.disk_full"]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "/x"), "download.disk_full", "(/x)"),
        (PermissionError(13, "Permission denied", "/x"), "download.not_writable", "may not write (/x)"),
        (OSError(5, "Input/output error", "/x"), "download.failed", "Input/output error (/x)"),
        (OSError("words"), "download.failed", "words"),
    ],
)
def test_errors_of_the_system(error: OSError, code: str, words: str) -> None:
    """Errors of the operating system become ours, with the file's name."""
    ours = from_os_error(error)
    assert ours.code == code
    assert words in ours.message
