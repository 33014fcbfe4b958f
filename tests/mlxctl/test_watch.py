"""Verbs that watch: on a terminal of their own, and where there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlxctl.cli import main
from mlxctl.screen import Line, Screen, Style, render_page
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl
from tests.support.status_document import status_document
from tests.support.terminal import STOPPED, Terminal

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon with one loaded model."""
    document = status_document()
    with FakeControl(Home.from_environment().socket, {"status": document, "ps": document["pool"]}) as control:
        yield control


@pytest.mark.parametrize("line", [["top"], ["ps", "--watch"], ["status", "-w"]], ids=" ".join)
def test_page_and_q(fake: FakeControl, line: list[str]) -> None:
    """The page shows the model and how to leave; q leaves at once with status 0 and the terminal as it was."""
    with Terminal(*line) as terminal:
        terminal.read_until("org/big", "q quits")
        assert terminal.modes_now != terminal.modes
        terminal.type("q")
        assert terminal.wait() == 0
        assert ENTER in terminal.output
        assert terminal.output.endswith(LEAVE)
        assert terminal.modes_now == terminal.modes


def press_ctrl_c(terminal: Terminal) -> None:
    """Press Ctrl-C."""
    terminal.type("\x03")


def send(number: signal.Signals) -> Callable[[Terminal], None]:
    """Return what sends a signal."""
    return lambda terminal: terminal.signal(number)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (press_ctrl_c, 130),
        (send(signal.SIGTERM), 143),
        (send(signal.SIGHUP), 129),
        (send(signal.SIGQUIT), 131),
    ],
    ids=["ctrl-c", "term", "hup", "quit"],
)
def test_terminal_is_put_back(fake: FakeControl, end: Callable[[Terminal], None], status: int) -> None:
    """However it is ended, page, cursor and key modes are as before, and no traceback is left."""
    with Terminal("top", "--interval", "1h") as terminal:
        terminal.read_until("q quits")
        end(terminal)
        assert terminal.wait() == status
        assert terminal.output.endswith("\x1b[?25h" + LEAVE)
        assert terminal.modes_now == terminal.modes


def test_stop_and_continue(fake: FakeControl) -> None:
    """Ctrl-Z gives the terminal back to the shell; going on draws the page again."""
    with Terminal("top", "--interval", "1h") as terminal:
        terminal.read_until("q quits")
        terminal.type("\x1a")
        while not terminal.output.endswith(LEAVE + STOPPED):
            terminal.read()
        assert terminal.modes_now == terminal.modes
        terminal.output = ""
        terminal.signal(signal.SIGCONT)
        terminal.read_until("org/big", "q quits")
        terminal.type("q")
        assert terminal.wait() == 0


def test_signal_before_the_wait_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A signal that comes right before the terminal is waited for is not left until a key is pressed."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with Screen() as screen:
            signal.raise_signal(signal.SIGUSR1)
            assert screen.wait(3600) == ""
            assert screen.wait(0) is None
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert capsys.readouterr().out.endswith(LEAVE)


def test_resize(fake: FakeControl) -> None:
    """A page follows the terminal's size at once, without asking the daemon again."""
    with Terminal("top", "--interval", "1h", columns=100) as terminal:
        terminal.read_until("EXPIRES", "q quits")
        asked = len(fake.asked("status"))
        terminal.output = ""
        terminal.resize(40, 10)
        terminal.read_until("q quits")
        lines = terminal.page.split("\r\n")
        assert len(lines) == 10
        assert max(len(line) for line in lines) <= 40
        assert len(fake.asked("status")) == asked
        terminal.type("q")
        assert terminal.wait() == 0


def test_space_looks_now(fake: FakeControl) -> None:
    """A space asks at once, whatever the interval."""
    with Terminal("top", "--interval", "1h") as terminal:
        terminal.read_until("q quits")
        fake.answers["status"] = status_document(problems=["the disk is full"])
        terminal.type(" ")
        terminal.read_until("problem: the disk is full")
        terminal.type("q")
        assert terminal.wait() == 0


def test_daemon_that_goes_and_comes(own_home: None) -> None:
    """The page of a daemon that is gone says so and stays, and goes on when it is back."""
    path = Home.from_environment().socket
    first = FakeControl(path, {"status": status_document(pid=1111)})
    try:
        terminal = Terminal("top", "--interval", "100ms", columns=250)  # the path of the socket is in the line
        with terminal:
            terminal.read_until("pid 1111", "q quits")
            first.close()
            terminal.read_until("not connected, trying again: no daemon is running", "org/big")
            with FakeControl(path, {"status": status_document(pid=2222)}):
                terminal.read_until("pid 2222")
                while "not connected" in terminal.page:
                    terminal.read()
                terminal.type("q")
                assert terminal.wait() == 0
    finally:
        first.close()


@pytest.mark.parametrize("line", [["top"], ["ps", "--watch"]], ids=" ".join)
def test_no_daemon_at_the_start(own_home: None, line: list[str]) -> None:
    """Without a daemon it exits 3 with the usual words, and never takes the screen."""
    with Terminal(*line) as terminal:
        assert terminal.wait() == 3
        assert ENTER not in terminal.output
        assert "try: mlxctl start" in terminal.output


@pytest.mark.parametrize(("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)], ids=["", "NO_COLOR"])
def test_no_color(fake: FakeControl, environment: dict[str, str], is_coloured: bool) -> None:
    """NO_COLOR takes colour and weight away, and no word."""
    fake.answers["status"] = status_document(problems=["the disk is full"])
    with Terminal("top", environment=environment) as terminal:
        terminal.read_until("problem: the disk is full", "q quits")
        assert ("\x1b[1;31m" in terminal.output) is is_coloured
        assert ("\x1b[1m" in terminal.output) is is_coloured
        terminal.type("q")
        assert terminal.wait() == 0


def test_terminal_that_cannot_draw(fake: FakeControl) -> None:
    """On a dumb terminal pages come one after another, without a code."""
    with Terminal("top", "--count", "1", environment={"TERM": "dumb"}) as terminal:
        assert terminal.wait() == 0
        assert "org/big" in terminal.output
        assert "\x1b" not in terminal.output


def test_pipe_gets_pages(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stdout is no terminal, plain pages follow each other, N of them."""
    assert main(["top", "--interval", "100ms", "--count", "2"]) == 0
    pages = capsys.readouterr().out.split("\n\nmlxd ")
    assert len(pages) == 2
    assert "org/big" in pages[1]
    assert "\x1b" not in "".join(pages)


def test_json_is_a_document_a_line(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` every look is one document on one line."""
    assert main(["top", "--interval", "100ms", "--count", "2", "--json"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(document["schema"], document["pid"]) for document in documents] == [("mlxctl/v1", 4711)] * 2


def test_pipe_ends_with_the_daemon(own_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere than on a terminal, a daemon that goes ends the watching with status 3."""
    control = FakeControl(Home.from_environment().socket, {})

    def answer(frame: dict[str, Any]) -> dict[str, Any]:
        control._listener.close()
        control.path.unlink()
        return status_document()

    control.answers["status"] = answer
    assert main(["top", "--interval", "100ms"]) == 3
    assert "error: no daemon is running" in capsys.readouterr().err


def test_closed_pipe_ends_it(fake: FakeControl) -> None:
    """`top | head -1` ends when head has."""
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "mlxctl", "top", "--interval", "100ms"], stdout=write_end, stderr=subprocess.PIPE
    ) as child:
        os.close(write_end)
        assert os.read(read_end, 4).decode() == "mlxd"
        os.close(read_end)
        assert child.wait(30) == 0
        assert child.stderr is not None
        assert child.stderr.read() == b""


@pytest.mark.parametrize(
    ("interval", "message"),
    [("soon", "'soon' is not a duration"), ("1ms", "--interval 1ms is out of bounds; it must be at least 100ms")],
)
def test_interval_is_checked(own_home: None, interval: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An interval that is none, or would be a flood, exits 2."""
    assert main(["top", "--interval", interval]) == 2
    assert message in capsys.readouterr().err


def test_page_is_cut_to_its_size() -> None:
    """Lines and columns over the size are left out, what a terminal would obey is not sent, styles are whole lines."""
    lines = [Line("abcdefgh", Style.ALERT), Line("a\x1b[2Jb"), Line("third")]
    page = render_page(lines, 6, 2, is_coloured=True)
    assert page == "\x1b[H\x1b[1;31mabc...\x1b[0m\x1b[K\na?[2Jb\x1b[K\x1b[J"
    assert render_page(lines, 2, 1, is_coloured=False) == "\x1b[H..\x1b[K\x1b[J"


@pytest.mark.parametrize(
    ("changes", "status", "lines"),
    [
        ({}, 0, []),
        ({"problems": ["the disk is full"]}, 1, ["the disk is full"]),
        ({"http": {"url": None, "problem": None}}, 1, ["the HTTP server is not listening yet"]),
        (
            {"preload": [{"id": "a", "state": "loading", "reason": None}]},
            1,
            ["preload a is being loaded"],
        ),
    ],
    ids=["well", "problem", "opening", "preload"],
)
def test_check(
    fake: FakeControl,
    changes: dict[str, Any],
    status: int,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`status --check` exits 0 in silence when all is well, else 1 with a line for each thing that is not."""
    fake.answers["status"] = status_document(**changes)
    assert main(["status", "--check"]) == status
    assert capsys.readouterr().out.splitlines() == lines
    assert main(["status", "--check", "--json"]) == status
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["problems"]) == (not lines, lines)


def test_check_without_a_daemon(own_home: None) -> None:
    """`status --check` exits 3 when nothing runs."""
    assert main(["status", "--check"]) == 3
