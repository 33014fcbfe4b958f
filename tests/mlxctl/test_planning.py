"""Estimates, simulations and evictions as text."""

from __future__ import annotations

import pytest

from mlxctl.cli import main
from mlxctl.planning import format_estimate, format_evicted, format_simulation

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
