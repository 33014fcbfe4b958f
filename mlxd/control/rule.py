"""`cloud.rule.*`: which names go to providers, in which order rules are tried, and where a name would go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxd.cloud.order import move as moved_priorities
from mlxd.cloud.router import Verdict
from mlxd.cloud.rules import Mode, Rule, compile_rules
from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.resource import Entries
from mlxd.control.setting import commit
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.resource import RESOURCES
from mlxd.protocol.settings import TRIGGERS, Settings

_PLACES = ("before", "after", "first", "last")


class _Rules(Entries):
    def entries(self, context: ControlContext) -> Iterable[tuple[str, Rule]]:
        """Return the rules in force, in the order in which they are tried."""
        return [(rule.id, rule) for rule in context.router.rules.rules]

    def describe(self, context: ControlContext, entry_id: str, entry: Rule) -> dict[str, Any]:  # noqa: ARG002
        """Return a rule; its failures in the order of their table, none where its mode has none."""
        return {
            "id": entry.id,
            "match": entry.match,
            "mode": entry.mode.value,
            "on": [trigger for trigger in TRIGGERS if trigger in entry.triggers],
            "to": [str(target) for target in entry.targets],
            "priority": entry.priority,
            "enabled": entry.enabled,
        }

    async def details(self, context: ControlContext, entry_id: str, entry: Rule) -> dict[str, Any]:  # noqa: ARG002
        """Return its place in the order, counted from 1, and how many there are."""
        rules = context.router.rules.rules
        return {"place": rules.index(entry) + 1, "of": len(rules)}

    def given(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is given; a rule that becomes a never rule loses its targets and triggers."""
        given = super().given(params)
        return {"on": None, "to": None, **given} if given.get("mode") == Mode.NEVER.value else given

    def new(self, current: Settings, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return a whole rule, which replaces the one with this id; without an id, the one with this match."""
        rule_id = params.get("id") or _rule_id(current, params["match"])
        return rule_id, {**dict.fromkeys(self.resource.fields), **super().given(params)}


RULES = _Rules(RESOURCES["cloud.rule"])


def _rule_id(settings: Settings, match: str) -> str:
    """Return the id of the rule with this match, or a new one made from its words."""
    rules = settings.cloud.rules
    for rule_id, rule in rules.items():
        if rule.match == match:
            return rule_id
    words = re.sub(r"[^A-Za-z0-9]+", "-", match.partition(":")[2] or match).strip("-").lower()[:40] or "rule"
    number = 2
    rule_id = words
    while rule_id in rules:
        rule_id = f"{words}-{number}"
        number += 1
    return rule_id


@handles("cloud.rule.move")
async def move(context: ControlContext, request: Request) -> Reply:
    """Change priorities, as few as can be, so that the rule stands where it is wanted."""
    rule_id = request.params["id"]
    wanted = [name for name in _PLACES if request.params.get(name)]
    if len(wanted) != 1:
        raise InvalidRequest(
            f"a rule moves to one place: one of {', '.join(_PLACES)}",
            param="id",
            hint="mlxctl cloud rule move ID --before OTHER",
        )

    def edits(current: Settings) -> Sequence[Edit]:
        RULES.find(current, rule_id)
        rules = compile_rules(current.cloud).rules
        moved = next(rule for rule in rules if rule.id == rule_id)
        others = [rule for rule in rules if rule.id != rule_id and _is_never(rule) == _is_never(moved)]
        place = _place(current, moved, others, wanted[0], request.params.get(wanted[0]))
        priorities = moved_priorities(others, moved, place)
        return [Edit((*RULES.path, name, "priority"), value) for name, value in priorities.items()]

    return await commit(context, request, edits)


def _place(current: Settings, moved: Rule, others: Sequence[Rule], where: str, other_id: Any) -> int:
    """Return how many of the others come before the rule then."""
    if where in {"first", "last"}:
        return 0 if where == "first" else len(others)
    RULES.find(current, other_id)
    if other_id == moved.id:
        raise InvalidRequest("a rule cannot stand before or after itself", param=where)
    place = next((place for place, rule in enumerate(others) if rule.id == other_id), None)
    if place is None:
        raise InvalidRequest(
            f"rule {moved.id!r} is {moved.mode.value} and {other_id!r} is {current.cloud.rules[other_id].mode}: never"
            " rules come before all others, whatever their priority",
            param=where,
            hint="mlxctl cloud rule list",
        )
    return place if where == "before" else place + 1


def _is_never(rule: Rule) -> bool:
    return rule.mode is Mode.NEVER


@handles("cloud.rule.explain")
async def explain(context: ControlContext, request: Request) -> Reply:
    """Say where a request for a name would go, and what every rule makes of the name; sends nothing."""
    assume = request.params.get("assume")
    if assume is not None and assume not in TRIGGERS:
        raise InvalidRequest(
            f"{assume!r} is no local failure that a rule can be for; one of {', '.join(TRIGGERS)}", param="assume"
        )
    found = context.router.explain(request.params["model"], assume)
    return {
        "model": found.model,
        "alias_of": found.alias_of,
        "route": found.outcome,
        "reason": found.reason,
        "rule": found.rule_id,
        "target": found.targets[0] if found.targets else None,
        "targets": list(found.targets),
        "triggers": list(found.triggers),
        "enabled": found.enabled,
        "is_local": found.is_local,
        "rules": [
            {
                "id": rule.rule_id,
                "match": rule.match,
                "mode": rule.mode,
                "priority": rule.priority,
                "target": rule.targets[0] if rule.targets else None,
                "verdict": _in_words(rule),
            }
            for rule in found.rules
        ],
    }


def _in_words(rule: Verdict) -> str:
    if rule.decides:
        return "matches and decides"
    if not rule.enabled:
        return "is disabled"
    return "matches, but a rule before it decides" if rule.matches else "does not match"
