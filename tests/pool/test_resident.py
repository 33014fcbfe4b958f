"""The table of a model's states."""

from __future__ import annotations

import pytest

from mlxd.pool.resident import TRANSITIONS, ModelState, Resident
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


def test_a_draining_model_cannot_come_back() -> None:
    """Nothing leads from draining or unloading to ready: it has to be loaded again."""
    assert TRANSITIONS[ModelState.DRAINING] == {ModelState.UNLOADING}
    assert TRANSITIONS[ModelState.UNLOADING] == {ModelState.UNLOADED}


def test_every_state_has_a_way_on() -> None:
    """No state is a dead end, and each is in the table."""
    assert set(TRANSITIONS) == set(ModelState)
    assert all(TRANSITIONS.values())
