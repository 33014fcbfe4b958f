"""`mlxctl op`: what runs and what has ended, to be watched, waited for or given up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mlxctl.cli import main
from mlxd.protocol.errors import LoadFailed, NotFound
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

RUNNING = {
    "op": "op-3",
    "kind": "model.load",
    "models": ["tiny"],
    "state": "running",
    "phase": "loading tiny",
    "done": 1,
    "total": 4,
    "started_at_ms": 0,
    "ended_at_ms": None,
    "result": None,
    "error": None,
}
DONE = {**RUNNING, "state": "done", "phase": "done", "ended_at_ms": 2000, "result": {}}
FAILED = {**DONE, "state": "failed", "phase": "failed", "error": LoadFailed("no tokenizer", hint="look").to_wire()}


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon with one operation that runs and one that has failed."""
    answers: dict[str, Any] = {
        "op.list": {"operations": [FAILED, RUNNING]},
        "op.show": FAILED,
        "op.wait": DONE,
        "op.cancel": DONE,
    }
    with FakeControl(Home.from_environment().socket, answers) as control:
        yield control


def test_list(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a line with its state, how far it is, or why it failed."""
    assert main(["op", "list"]) == 0
    head, failed, running = capsys.readouterr().out.splitlines()
    assert head.split() == ["OPERATION", "KIND", "STATE", "PHASE", "MODELS", "BEGAN", "ERROR"]
    assert failed.startswith("op-3       model.load  failed   -                    tiny ")
    assert failed.endswith("ago  no tokenizer")
    assert "running  loading tiny (25 %)  tiny" in running


def test_narrow_list(fake: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a narrow terminal the phase gives way, not the names of operations and models."""
    monkeypatch.setenv("COLUMNS", "80")
    model = "an-organisation/a-model-of-4-bits"
    fake.answers["op.list"] = {"operations": [{**RUNNING, "models": [model]}]}

    assert main(["op", "list"]) == 0
    assert f"  {model}  " in capsys.readouterr().out


def test_list_of_those_that_run(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """What has ended can be left out; nothing at all is said in words."""
    assert main(["op", "list", "--running", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["operations"] == [RUNNING]
    fake.answers["op.list"] = {"operations": []}
    assert main(["op", "list"]) == 0
    assert capsys.readouterr().out == "no operation runs, and none has ended since the daemon started\n"


def test_show(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """One that failed shows how long it took, why, and what to do."""
    assert main(["op", "show", "op-3"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "operation: op-3",
        "kind:      model.load",
        "models:    tiny",
        "state:     failed",
        "took:      2s",
        "error:     no tokenizer",
        "try:       look",
    ]


def test_wait(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes back when the operation has ended, and fails as the operation does."""
    assert main(["op", "wait", "op-3"]) == 0
    assert "state:     done" in capsys.readouterr().out
    fake.answers["op.wait"] = FAILED
    assert main(["op", "wait", "op-3"]) == 1
    assert "error: no tokenizer\n  try: look" in capsys.readouterr().err


def test_wait_with_an_end(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A wait that is over first exits 7."""
    fake.answers["op.wait"] = RUNNING
    assert main(["op", "wait", "op-3", "--for", "1ms"]) == 7
    assert "model.load (op-3) did not end within 1ms; it goes on" in capsys.readouterr().err


def test_cancel(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """It is given up, and one that does not exist is not found."""
    assert main(["op", "cancel", "op-3"]) == 0
    assert fake.asked("op.cancel") == [{"op": "op-3"}]
    fake.answers["op.cancel"] = NotFound("there is no operation 'op-9'", hint="mlxctl op list")
    assert main(["op", "cancel", "op-9"]) == 4
