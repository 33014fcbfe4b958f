"""Moving a rule within the order of rules by changing priorities, as few as can be. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlxd.cloud.rules import Rule

# Room for one rule between two that were neighbours.
_ROOM = 2


def move(rules: Sequence[Rule], moved: Rule, place: int) -> dict[str, int]:
    """Return the priorities to set so that *moved* stands at *place* among the others, whose order stays.

    Args:
        rules: the others of its kind (never rules, or the rest), in order.
        moved: the rule.
        place: how many of them are to come before it.
    """
    before = rules[place - 1] if place > 0 else None
    after = rules[place] if place < len(rules) else None
    lowest = moved.priority if after is None else after.priority
    for priority in _candidates(moved, before, after):
        three = (before, replace(moved, priority=priority), after)
        orders = [rule.order for rule in three if rule is not None]
        if orders == sorted(orders):
            return {} if priority == moved.priority else {moved.id: priority}
    # No number lies between the two: all that come first go up together.
    raised = {rule.id: rule.priority + _ROOM for rule in rules[:place]}
    return {**raised, moved.id: lowest + 1}


def _candidates(moved: Rule, before: Rule | None, after: Rule | None) -> list[int]:
    found = [moved.priority]
    if after is not None:
        found += [after.priority, after.priority + 1]
    if before is not None:
        found += [before.priority, before.priority - 1]
    return found
