"""The log: one line per event, to stderr or to a private file that is rotated, at a level that changes live."""

import logging
import logging.handlers
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxd import log
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import decode


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Give the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def settings_with(level: str) -> Settings:
    """Return settings with this level."""
    return decode({"daemon": {"log_level": level}}, 10**9)


def test_the_foreground_logs_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """A line has the time in UTC, the level and the message; stdout stays clean."""
    log.configure("info", None)
    logging.getLogger("mlxd.pool").warning("loading %s failed", "a")
    captured = capsys.readouterr()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning loading a failed\n", captured.err)
    assert captured.out == ""


def test_an_event_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks of a message cannot forge a second event."""
    log.configure("info", None)
    logging.getLogger("mlxd").info("first\n2026-01-01T00:00:00.000Z error   second")
    assert capsys.readouterr().err.count("\n") == 1


def test_what_a_client_sent_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters, and what is no text, are written as escapes; other writing stays as it is."""
    log.configure("info", None)
    logging.getLogger("mlxd").info("GET /\x1b[2J\x07 \udcff \u202e für 模型")
    assert capsys.readouterr().err.endswith(r" GET /\x1b[2J\x07 \udcff \u202e für 模型" + "\n")


def test_the_level_decides_and_follows_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    """What is less severe is not written; a changed setting applies to the next line."""
    log.configure("info", None)
    logging.getLogger("mlxd").debug("before")
    log.apply(settings_with("debug"))
    logging.getLogger("mlxd").debug("after")
    log.apply(settings_with("error"))
    logging.getLogger("mlxd").warning("too late")
    assert re.findall(r"before|after|too late", capsys.readouterr().err) == ["after"]


def test_libraries_do_not_chat(capsys: pytest.CaptureFixture[str]) -> None:
    """Their info lines are about themselves; their warnings are heard."""
    log.configure("debug", None)
    logging.getLogger("aiohttp.access").info("GET /")
    logging.getLogger("aiohttp.server").warning("odd")
    assert re.findall(r"GET|odd", capsys.readouterr().err) == ["odd"]


def test_a_log_file_is_private(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is made, the file is its owner's alone, and stderr gets nothing."""
    file = tmp_path / "logs" / "mlxd.log"
    log.configure("info", file)
    logging.getLogger("mlxd").info("hello")
    assert file.read_text().endswith("hello\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert capsys.readouterr().err == ""


def test_a_log_file_is_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else rotates it: old files are kept up to a number, and the sum stays small."""
    monkeypatch.setattr(log, "MAX_FILE_BYTES", 500)
    file = tmp_path / "mlxd.log"
    log.configure("info", file)
    for number in range(100):
        logging.getLogger("mlxd").info("event %d", number)
    assert sorted(path.name for path in tmp_path.glob("mlxd.log*")) == [
        "mlxd.log",
        *(f"mlxd.log.{n}" for n in (1, 2, 3)),
    ]
    assert all(path.stat().st_size <= 500 for path in tmp_path.glob("mlxd.log*"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "event 99" in file.read_text()


def test_a_flood_of_one_kind_is_bounded_and_counted() -> None:
    """After so many lines of a kind in a minute the rest is counted; other kinds and the next minute are heard."""
    now = [0.0]
    gate = log.FloodGate(lambda: now[0])
    logger = logging.getLogger("mlxd.x")
    flood = [logger.makeRecord("mlxd.x", logging.WARNING, "", 0, "client %d is odd", (n,), None) for n in range(100)]
    assert sum(gate.admit(record) for record in flood) == 20
    assert gate.admit(logger.makeRecord("mlxd.x", logging.ERROR, "", 0, "client %d is odd", (1,), None))
    assert gate.admit(logger.makeRecord("mlxd.x", logging.WARNING, "", 0, "%s", ("another event",), None))
    assert list(gate.end_windows()) == []
    now[0] = 60.0
    (line,) = gate.end_windows()
    assert line.getMessage() == "80 more lines like this were left out within 60 s: client %d is odd"
    assert gate.admit(flood[0])


def test_requests_have_room_and_debug_lines_no_bound() -> None:
    """One info line for each request is ordinary for ten a second; who asked for debug lines gets them all."""
    gate = log.FloodGate(lambda: 0.0)
    logger = logging.getLogger("mlxd")
    for level, most in ((logging.INFO, 600), (logging.DEBUG, 2000)):
        lines = [logger.makeRecord("mlxd", level, "", 0, "GET %s", ("/",), None) for _ in range(2000)]
        assert sum(gate.admit(line) for line in lines) == most


def test_kinds_without_number_are_bounded() -> None:
    """A library whose texts all differ fills neither the log nor the memory."""
    gate = log.FloodGate(lambda: 0.0)
    logger = logging.getLogger("library")
    lines = [logger.makeRecord("library", logging.ERROR, "", 0, f"text {n}", (), None) for n in range(3000)]
    assert sum(gate.admit(line) for line in lines) == 1000


def test_the_handlers_keep_a_flood_out(tmp_path: Path) -> None:
    """Both handlers ask the gate."""
    log.configure("info", tmp_path / "mlxd.log")
    for number in range(50):
        logging.getLogger("mlxd").warning("client %d is odd", number)
    assert len((tmp_path / "mlxd.log").read_text().splitlines()) == 20


def test_a_disk_that_takes_no_line_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback for each line: one sentence on stderr, and how many were lost once lines are written again."""
    log.configure("info", tmp_path / "mlxd.log")
    (handler,) = logging.getLogger().handlers
    full = OSError(28, "No space left on device")

    def refuse(*_: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(handler, "flush", refuse)
        for number in range(5):
            logging.getLogger("mlxd").info("event %d", number)
    logging.getLogger("mlxd").info("back again")
    assert capsys.readouterr().err == (
        "mlxd: the log cannot be written: No space left on device; lines are lost until it can\n"
    )
    assert "the log could not be written for a while: 5 lines may be missing" in (tmp_path / "mlxd.log").read_text()


def test_a_log_folder_that_is_gone_is_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that cannot be opened again after it was rotated is a disk that takes no line."""
    folder = tmp_path / "logs"
    log.configure("info", folder / "mlxd.log")
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.handlers.RotatingFileHandler)
    file = handler.setStream(None)  # type: ignore[arg-type]  # as between closing the full file and opening the next
    assert file is not None
    file.close()
    folder.rename(tmp_path / "away")
    for number in range(3):
        logging.getLogger("mlxd").info("event %d", number)
    assert capsys.readouterr().err.count("\n") == 1
