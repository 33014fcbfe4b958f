"""The table of a model's states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mlxd.pool
from mlxd.pool.lifecycle import TRANSITIONS, ModelState
from mlxd.pool.resident import Resident
from tests.support.pool_world import entry, facts


@pytest.mark.parametrize("before", ModelState)
@pytest.mark.parametrize("after", ModelState)
def test_only_the_table_s_transitions_are_possible(before: ModelState, after: ModelState) -> None:
    """Every other pair of states raises and leaves the state as it was."""
    resident = Resident(entry("a", facts(1)), state=before)
    if after in TRANSITIONS[before]:
        resident.enter(after)
        assert resident.state is after
    else:
        with pytest.raises(RuntimeError, match=f"a cannot go from {before.value} to {after.value}"):
            resident.enter(after)
        assert resident.state is before


def test_the_table_is_the_one_that_the_design_draws() -> None:
    """DESIGN.md has each state, what status calls it, and each way on."""
    design = (Path(mlxd.pool.__path__[0]) / "DESIGN.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*(\w+)\*(?:, shown as (\w+))? \|[^|]*\| ([\w, ]+) \|$", design, re.MULTILINE)
    drawn = {state: (word or state, set(ways.split(", "))) for state, word, ways in rows}
    assert drawn == {state.value: (state.word, {to.value for to in ways}) for state, ways in TRANSITIONS.items()}


def test_a_draining_model_cannot_come_back() -> None:
    """Nothing leads from draining or unloading to ready: it has to be loaded again."""
    assert TRANSITIONS[ModelState.DRAINING] == {ModelState.UNLOADING}
    assert TRANSITIONS[ModelState.UNLOADING] == {ModelState.UNLOADED}


def test_every_state_has_a_way_on() -> None:
    """No state is a dead end, and each is in the table."""
    assert set(TRANSITIONS) == set(ModelState)
    assert all(TRANSITIONS.values())
