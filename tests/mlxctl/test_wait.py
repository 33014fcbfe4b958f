"""`--wait`: what a change has begun is waited for, with an end to the wait."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mlxctl.cli import main
from mlxctl.wait import ProgressLine, format_progress
from mlxd.protocol.errors import Draining, LoadFailed
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

BEGUN = {"model": "tiny", "op": "op-3", "loading": ["tiny"]}
RUNNING = {"op": "op-3", "kind": "model.load", "state": "running", "phase": "loading", "done": 1, "total": 4}
DONE = {**RUNNING, "state": "done", "phase": "done", "result": {"seconds": 2}}


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon that begins to load a model."""
    with FakeControl(Home.from_environment().socket, {"model.load": BEGUN, "op.wait": DONE}) as control:
        yield control


def test_without_wait(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Without `--wait` the command comes back at once and names what goes on."""
    assert main(["model", "load", "tiny"]) == 0

    assert fake.asked("op.wait") == []
    assert capsys.readouterr().out == "loading tiny\nop-3 goes on: mlxctl op wait op-3\n"


@pytest.mark.parametrize("words", ["--wait tiny", "tiny --wait", "--wait=5m tiny", "--wait 5m tiny", "tiny --wait 5m"])
def test_wait(fake: FakeControl, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--wait` takes a word after it only if that is a duration, and comes back when it is done."""
    assert main(["model", "load", *words.split()]) == 0

    assert fake.asked("model.load") == [{"model": "tiny"}]
    assert len(fake.asked("op.wait")) == 1
    assert capsys.readouterr().out == "loading tiny\ndone (op-3)\n"


def test_wait_asks_again(fake: FakeControl) -> None:
    """An answer that it still runs is followed by another question."""
    answers = iter([RUNNING, RUNNING, DONE])
    fake.answers["op.wait"] = lambda frame: next(answers)

    assert main(["model", "load", "tiny", "--wait"]) == 0
    assert len(fake.asked("op.wait")) == 3


def test_nothing_to_wait_for(fake: FakeControl) -> None:
    """A change that begins nothing comes back at once, with `--wait` too."""
    fake.answers["model.load"] = {"model": "tiny"}

    assert main(["model", "load", "tiny", "--wait"]) == 0
    assert fake.asked("op.wait") == []


def test_wait_that_ends_first(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A wait that ends before what it waits for exits 7, and says that this goes on."""
    fake.answers["op.wait"] = RUNNING

    assert main(["model", "load", "tiny", "--wait=1ms"]) == 7
    assert capsys.readouterr().err.splitlines() == [
        "error: model.load (op-3) did not end within 1ms; it goes on",
        "  try: mlxctl op wait op-3",
        "  try: mlxctl op cancel op-3",
        "  code: op.wait_timeout",
    ]


def test_what_is_waited_for_fails(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """An operation that fails is reported as its error, with its exit status."""
    error = LoadFailed("tiny could not be loaded: no tokenizer").to_wire()
    fake.answers["op.wait"] = {**RUNNING, "state": "failed", "error": error}

    assert main(["model", "load", "tiny", "--wait"]) == 1
    assert "error: tiny could not be loaded: no tokenizer" in capsys.readouterr().err


def test_json_has_the_operation(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` the document has how the operation ended."""
    main(["model", "load", "tiny", "--wait", "--json"])
    assert json.loads(capsys.readouterr().out) == {"schema": "mlxctl/v1", **BEGUN, "operation": DONE}


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (("loading", 10**9, 4 * 10**9), "loading: 25 % of 4.0 GB (3.7 GiB)"),
        (("downloading", 5, None), "downloading"),
        ((None, None, None), "working"),
        (("draining tiny", 0, 0), "draining tiny"),
    ],
)
def test_progress_in_words(progress: tuple[Any, Any, Any], shown: str) -> None:
    """Progress is shown in percent of a size, or by its phase alone."""
    assert format_progress(*progress) == shown


def test_progress_line_is_written_over(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the line replaces itself, a shorter one wholly, and is taken away at the end."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    line = ProgressLine()
    line.update("converting", None, None)
    line.update("done", None, None)
    line.clear()

    assert capsys.readouterr().err == "\rconverting\rdone      \r    \r"


def test_a_value_is_not_taken_for_the_duration(fake: FakeControl) -> None:
    """Where the verb takes a value, the word behind `--wait` is that."""
    fake.answers["settings.set"] = {"changed": [], "gen": 7}

    assert main(["pool", "set-keep-alive", "--wait", "5m"]) == 0
    assert main(["pool", "set-keep-alive", "--wait=5m", "10m"]) == 0
    assert fake.asked("settings.set") == [
        {"changes": {"pool.keep_alive": "5m"}},
        {"changes": {"pool.keep_alive": "10m"}},
    ]


def interrupted(frame: dict[str, Any]) -> Any:
    """Press Ctrl-C while the daemon is asked."""
    os.kill(os.getpid(), signal.SIGINT)
    return RUNNING


def test_the_first_ctrl_c_detaches(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends the wait, not what is waited for, and says how to get back to it."""
    fake.answers["op.wait"] = interrupted

    assert main(["model", "load", "tiny", "--wait"]) == 130
    shown = capsys.readouterr()
    assert shown.err == "detached: op-3 goes on\n  try: mlxctl op wait op-3\n  try: mlxctl op cancel op-3\n"
    assert shown.out == ""
    assert fake.asked("op.cancel") == []


def test_detached_in_json(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A program reads which operation goes on."""
    fake.answers["op.wait"] = interrupted

    assert main(["model", "load", "tiny", "--wait", "--json"]) == 130
    assert json.loads(capsys.readouterr().out) == {"schema": "mlxctl/v1", **BEGUN, "detached": True}


def test_ctrl_c_before_the_answer(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Before there is an operation, the person is told that it may have been done."""
    fake.answers["model.load"] = interrupted

    assert main(["model", "load", "tiny"]) == 130
    assert "it may have been done: mlxctl status" in capsys.readouterr().err


def test_a_daemon_that_ends_meanwhile(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """The wait ends in the daemon's words."""
    fake.answers["op.wait"] = Draining("the daemon ends", hint="mlxctl start")

    assert main(["model", "load", "tiny", "--wait"]) == 6
    assert "error: the daemon ends\n  try: mlxctl start" in capsys.readouterr().err
