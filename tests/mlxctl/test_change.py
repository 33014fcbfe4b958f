"""What a change came to, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mlxctl.change import format_estimate, format_evicted, format_simulation, show_value
from mlxctl.cli import main
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

REPLY: dict[str, Any] = {
    "gen": 8,
    "changed": [{"key": "pool.memory", "old": None, "new": "24GB"}],
    "warnings": [],
    "dry_run": False,
    "memory": {"limit_bytes": 24 * 10**9, "reserved_bytes": 30 * 10**9},
    "evicting": [{"id": "org/idle", "bytes": 4 * 10**9}],
    "draining": [{"id": "org/busy", "bytes": 8 * 10**9, "requests": 2}],
    "aborting": [{"id": "org/begun", "bytes": 2 * 10**9}],
    "loading": ["org/next"],
    "deferred": [{"id": "org/late", "reason": "no room for 9.0 GB"}],
    "over_limit": "draining org/busy (2 requests)",
    "op": "op-5",
}
AFTER: dict[str, Any] = {"memory": {"limit_bytes": 24 * 10**9, "reserved_bytes": 18 * 10**9}}


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon that evicts, drains, loads and defers."""
    answers: dict[str, dict[str, Any]] = {"settings.set": REPLY, "op.wait": {"state": "done"}, "pool.show": AFTER}
    with FakeControl(Home.from_environment().socket, answers) as control:
        yield control


def test_change_golden(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """What changed, the limit in both units, each model that goes, comes or waits, and how to watch it."""
    assert main(["pool", "set-memory", "24GB"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pool.memory: (unset) -> 24GB",
        "limit 24.0 GB (22.4 GiB), 30.0 GB (27.9 GiB) reserved",
        "evicting org/idle: 4.0 GB (3.7 GiB)",
        "stopping the load of org/begun: 2.0 GB (1.9 GiB)",
        "draining org/busy: 8.0 GB (7.5 GiB), 2 requests to end",
        "loading org/next",
        "deferred org/late: no room for 9.0 GB",
        "over limit: draining org/busy (2 requests)",
        "op-5 goes on: mlxctl op wait op-5",
        "generation 8",
    ]


def test_waited_change_shows_what_it_came_to(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """After a wait the memory is that of now."""
    assert main(["pool", "set-memory", "24GB", "--wait"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "limit 24.0 GB (22.4 GiB), 18.0 GB (16.8 GiB) reserved"
    assert "done (op-5)" in lines


def test_dry_run_says_that_nothing_changed(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run shows what would go, and ends with the word that it was one."""
    fake.answers["settings.set"] = {**REPLY, "op": None, "dry_run": True}

    main(["pool", "set-memory", "24GB", "--dry-run"])
    assert capsys.readouterr().out.splitlines()[-1] == "dry run: nothing was changed"


def test_unchanged(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """The value that was there already is no change."""
    fake.answers["settings.set"] = {"gen": 8, "changed": [], "warnings": []}

    assert main(["pool", "set-memory", "24GB"]) == 0
    assert capsys.readouterr().out == "unchanged\ngeneration 8\n"


def test_warnings_go_to_stderr(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A warning is no data."""
    fake.answers["settings.set"] = {"gen": 8, "changed": [], "warnings": ["/mnt/models is not there now"]}

    main(["config", "set", "catalog.paths", "/mnt/models"])
    assert capsys.readouterr().err == "warning: /mnt/models is not there now\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "(unset)"),
        (True, "true"),
        (0, "0"),
        ("60%", "60%"),
        ([], "(empty)"),
        (["a", "org/b"], "a,org/b"),
        ({"env": "KEY"}, "{ env = KEY }"),
    ],
)
def test_values_as_they_are_typed(value: Any, shown: str) -> None:
    """A value is shown as `config set` takes it."""
    assert show_value(value) == shown


GB = 10**9
ESTIMATE = {
    "model": "org/big",
    "state": "unloaded",
    "weights_bytes": 16 * GB,
    "weights_confidence": "header",
    "kv_bytes": 2 * GB,
    "kv_confidence": "guess",
    "context_tokens": 4096,
    "parallel": 2,
    "margin_bytes": GB // 2,
    "total_bytes": 18 * GB + GB // 2,
    "base": None,
    "base_bytes": 0,
    "load_bytes": 17 * GB,
    "limit_bytes": 24 * GB,
    "free_bytes": 10 * GB,
    "fits": "freeing",
    "evicting": [{"id": "old", "bytes": 9 * GB}],
    "trimming": [{"id": "kept", "bytes": GB}],
}


def test_an_estimate_says_where_its_numbers_come_from() -> None:
    """Each number with its source, and what gives way, by name."""
    lines = format_estimate(ESTIMATE).splitlines()
    assert lines[1].endswith("computed from the files")
    assert lines[2].endswith("for 2 x 4096 tokens, a guess: the config does not tell")
    assert lines[-2].startswith("would evict old: 9.0 GB")
    assert lines[-1].startswith("would trim the prompt cache of kept: 1.0 GB")


def test_a_simulation_says_that_nothing_was_changed() -> None:
    """Refusals, victims, then the sum."""
    document = {
        "changed": [{"key": "pool.memory", "old": "auto", "new": "3GB"}],
        "refused": ["too little"],
        "evicting": [{"id": "old", "bytes": 9 * GB}],
        "memory": {"limit_bytes": 3 * GB, "reserved_bytes": 9 * GB},
    }
    lines = format_simulation(document).splitlines()
    assert lines[:2] == ["pool.memory: auto -> 3GB", "would be refused: too little"]
    assert lines[-1] == "simulated: nothing was changed"


def test_an_eviction_says_who_stays() -> None:
    """With --idle each loaded model that stays is named with its reason."""
    lines = format_evicted(
        {"model": None, "kept": [{"id": "p", "reason": "p is pinned"}], "dry_run": True}
    ).splitlines()
    assert lines == ["no model is idle", "stays: p is pinned", "dry run: nothing was changed"]


@pytest.mark.parametrize(
    "line",
    [
        ["pool", "evict"],
        ["pool", "evict", "m", "--idle"],
        ["pool", "simulate"],
        ["pool", "simulate", "--load", "m", "--memory", "3GB"],
    ],
)
def test_a_line_that_asks_for_nothing_or_for_both_is_usage(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before a daemon is asked, with the ways to say it."""
    assert main(line) == 2
    assert "try: mlxctl pool" in capsys.readouterr().err
