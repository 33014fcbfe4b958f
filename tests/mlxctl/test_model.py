"""`mlxctl model set`, `alias`, `rescan`: what is asked of the daemon, and what is said of its answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mlxctl.cli import main
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

STALE = {"id": "org/m", "reason": "its context is to be 100 tokens instead of 2048", "reload": "idle"}
ANSWERS: dict[str, Any] = {
    "model.set": {"gen": 8, "changed": [{"key": "k", "old": "inherit", "new": 100}], "stale": [STALE], "op": "op-3"},
    "model.alias.add": {"gen": 8, "changed": []},
    "model.alias.remove": {"gen": 8, "changed": []},
    "model.alias.list": {"aliases": [{"alias": "gpt", "model": "org/m", "problem": None}]},
    "catalog.rescan": {"models": 1, "added": ["org/m"], "removed": ["old"]},
}


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon that takes every change."""
    with FakeControl(Home.from_environment().socket, ANSWERS) as control:
        yield control


def test_set_sends_what_was_typed(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Values stay text, names may have the hyphens of verbs; the reply says what is loaded again, and when."""
    assert main(["model", "set", "org/m", "context-length=100", "temperature=0", "--reload", "now"]) == 0

    changes = {"context_length": "100", "temperature": "0"}
    assert fake.asked("model.set") == [{"model": "org/m", "changes": changes, "reload": "now"}]
    lines = capsys.readouterr().out.splitlines()
    assert "org/m is loaded again when it is idle: its context is to be 100 tokens instead of 2048" in lines


def test_a_reload_without_a_change(fake: FakeControl) -> None:
    """`--reload now` alone has a stale model loaded again."""
    assert main(["model", "set", "org/m", "--reload", "now"]) == 0
    assert fake.asked("model.set") == [{"model": "org/m", "reload": "now"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["temperature"], "'temperature' is no KEY=VALUE"),
        (["=1"], "'=1' is no KEY=VALUE"),
        (["top-k=1", "top_k=2"], "top_k is given twice"),
    ],
)
def test_words_that_are_no_pairs(
    fake: FakeControl, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused as wrong use, with the right one; the daemon is not asked."""
    assert main(["model", "set", "org/m", *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "  try: mlxctl model set MODEL KEY=VALUE..." in errors
    assert fake.asked("model.set") == []


def test_aliases(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """They are added to a model, removed by their own name, and listed with it."""
    assert main(["model", "alias", "add", "org/m", "gpt"]) == 0
    assert main(["model", "alias", "remove", "gpt"]) == 0
    assert fake.asked("model.alias.add") == [{"model": "org/m", "alias": "gpt"}]
    assert fake.asked("model.alias.remove") == [{"alias": "gpt"}]
    capsys.readouterr()
    assert main(["model", "alias", "list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ALIAS", "MODEL", "NOTE"],
        ["gpt", "org/m", "-"],
    ]
    fake.answers["model.alias.list"] = {"aliases": []}
    assert main(["model", "alias", "list"]) == 0
    assert "mlxctl model alias add MODEL ALIAS" in capsys.readouterr().out


def test_rescan_says_what_came_and_went(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, and the count."""
    assert main(["model", "rescan"]) == 0
    assert capsys.readouterr().out.splitlines() == ["added org/m", "removed old", "1 model on this disk"]


def test_a_load_says_what_goes_for_it(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """With --force too, each victim is a line of its own, and a busy one has the number of its requests."""
    fake.answers["model.load"] = {
        "model": "huge",
        "loading": ["huge"],
        "evicting": [{"id": "idle", "bytes": 10**9}],
        "draining": [{"id": "busy", "requests": 2, "bytes": 2 * 10**9}],
        "aborting": [{"id": "begun", "bytes": 10**9}],
        "evicting_later": [{"id": "kept", "bytes": 3 * 10**9}],
        "waiting": "needs 90.0 GB, 2.0 GB free",
        "drain_after_s": 30.0,
        "over_limit": "huge is loaded by force",
        "op": "op-1",
    }
    assert main(["model", "load", "huge", "--force"]) == 0
    assert fake.asked("model.load") == [{"model": "huge", "force": True}]
    assert capsys.readouterr().out.splitlines() == [
        "evicting idle: 1.0 GB (0.9 GiB)",
        "stopping the load of begun: 1.0 GB (0.9 GiB)",
        "then evicting kept: 3.0 GB (2.8 GiB)",
        "draining busy: 2.0 GB (1.9 GiB), 2 requests to end",
        "loading huge",
        "waiting: needs 90.0 GB, 2.0 GB free",
        "busy models begin to drain after 30s",
        "over limit: huge is loaded by force",
        "op-1 goes on: mlxctl op wait op-1",
    ]
