"""`mlxctl request`: what is being answered, one of it, and its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mlxctl.cli import main
from mlxd.protocol.errors import NotFound
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

WAIT = {"request_id": "req-2", "model": "b", "waited_s": 75.0, "reason": "b is loading: 25 %"}


def request(name: str, **more: Any) -> dict[str, Any]:
    """Return a request that began ten seconds before the test's moment."""
    shown = {"id": name, "endpoint": "/v1/completions", "model": "a", "route": "local", "state": "answering"}
    return {**shown, "started_at_ms": 990_000, "completion_tokens": 420, **more}


@pytest.fixture
def fake(own_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """A daemon that answers one request and lets another wait."""
    monkeypatch.setattr("time.time", lambda: 1000.0)
    waiting = request("req-2", model="b", state="waiting", completion_tokens=0)
    answers: dict[str, Any] = {
        "request.list": {"requests": [request("req-1"), request("req-3", route="cloud"), waiting], "next": None},
        "request.show": {"requests": [waiting], "waits": [WAIT]},
        "request.cancel": {"request": "req-1", "cancelled": 1},
    }
    with FakeControl(Home.from_environment().socket, answers) as control:
        yield control


def test_list(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each request, with its tokens so far where they are known."""
    assert main(["request", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "REQUEST  MODEL  ROUTE  STATE      TOKENS  ENDPOINT         AGE",
        "req-1    a      local  answering     420  /v1/completions  10s",
        "req-3    a      cloud  answering       -  /v1/completions  10s",
        "req-2    b      local  waiting         0  /v1/completions  10s",
    ]


def test_narrow_list(fake: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A narrow terminal gets fewer columns, not broken lines."""
    monkeypatch.setenv("COLUMNS", "36")
    assert main(["request", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "REQUEST  MODEL  STATE      AGE"


def test_none(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """That nothing runs is said."""
    fake.answers["request.list"] = {"requests": [], "next": None}
    assert main(["request", "list"]) == 0
    assert capsys.readouterr().out == "no request runs\n"


def test_show(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """One request with all that is known, its speed, and what it waits for."""
    assert main(["request", "show", "req-2"]) == 0
    assert fake.asked("request.show") == [{"request": "req-2"}]
    assert capsys.readouterr().out.splitlines() == [
        "request:  req-2",
        "model:    b",
        "route:    local",
        "endpoint: /v1/completions",
        "state:    waiting",
        "began:    10s ago",
        "tokens:   0, 0.0 a second since it began",
        "",
        "WAITING  MODEL    FOR  REASON",
        "req-2    b      1m15s  b is loading: 25 %",
    ]


def test_cancel(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A cancelled request is counted; one that is not there exits 4 and leads to the list."""
    assert main(["request", "cancel", "req-1"]) == 0
    assert capsys.readouterr().out == "cancelled 1 request\n"
    fake.answers["request.cancel"] = NotFound("there is no running request 'x'", hint="mlxctl request list")
    assert main(["request", "cancel", "x"]) == 4
    assert "  try: mlxctl request list\n" in capsys.readouterr().err
