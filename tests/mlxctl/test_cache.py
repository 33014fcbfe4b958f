"""`mlxctl cache`: the noise rules as a table and as a document."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mlxctl.cli import main
from mlxd.protocol.noise import RULES
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

SHOWN = [
    {
        "name": rule.name,
        "enabled": rule is not RULES[-1],
        "removes": rule.removes,
        "clients": list(rule.clients),
        "matches": [{"role": each.role, "place": each.place.value, "pattern": each.pattern} for each in rule.matches],
    }
    for rule in RULES
]


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon whose last rule is off."""
    with FakeControl(Home.from_environment().socket, {"cache.rules": {"rules": SHOWN, "next": None}}) as control:
        yield control


def test_rules(fake: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each rule; 80 columns are enough for all that it removes."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["cache", "rules"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME                 STATE  REMOVES",
        "claude-billing-line  on     Claude Code's billing line before the system prompt.",
        "claude-tokens-left   off    Claude Code's notes of how many tokens are left.",
    ]


def test_rules_as_json(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """The document has the patterns, and the places where they are looked for."""
    assert main(["cache", "rules", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": "mlxctl/v1", "rules": SHOWN}
