"""`cloud.rule.*`: which names go to providers, in which order rules are tried, and where a name would go."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mlxd.cloud.order import move as moved_priorities
from mlxd.cloud.router import Verdict
from mlxd.cloud.rules import Mode, Rule, compile_rules
from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request
from mlxd.control.page import make_page, place_of_number
from mlxd.control.setting import commit, keyed
from mlxd.protocol.errors import InvalidRequest, NotFound
from mlxd.protocol.settings import Settings
from mlxd.protocol.trigger import TRIGGERS

_RULES = ("cloud", "rules")
_PLACES = ("before", "after", "first", "last")


async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return the rules in the order in which they are tried."""
    return make_page(request.params, "rules", describe_all(context), place_of_number)


def describe_all(context: ControlContext) -> list[dict[str, Any]]:
    """Return the rules in force, in the order in which they are tried."""
    return [_describe(rule) for rule in context.router.rules.rules]


def _describe(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "match": rule.match,
        "mode": rule.mode.value,
        "on": [trigger for trigger in TRIGGERS if trigger in rule.triggers],
        "to": [str(target) for target in rule.targets],
        "priority": rule.priority,
        "enabled": rule.enabled,
    }


async def show(context: ControlContext, request: Request) -> Reply:
    """Return one rule, its place in the order, counted from 1, and how many there are."""
    rules = context.router.rules.rules
    _require(context.store.current, request.params["id"])
    place = next(place for place, rule in enumerate(rules) if rule.id == request.params["id"])
    return {**_describe(rules[place]), "place": place + 1, "of": len(rules)}


async def add(context: ControlContext, request: Request) -> Reply:
    """Add a rule, or replace the one with this id; without an id, the one with this match."""
    params = request.params

    def edits(current: Settings) -> Sequence[Edit]:
        rule_id = params.get("id") or _rule_id(current, params["match"])
        values = {name: params.get(name) for name in ("match", "mode", "on", "to", "priority")}
        return keyed(_RULES, rule_id, **values, enabled=None)

    return await commit(context, request, edits)


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


async def set_one(context: ControlContext, request: Request) -> Reply:
    """Change what is given of a rule; one that becomes a never rule loses its targets and triggers."""
    params = request.params
    given = {name: params[name] for name in ("match", "mode", "on", "to", "priority") if name in params}
    if not given:
        raise InvalidRequest("there is nothing to set", param="id", hint="mlxctl cloud rule set --help")
    if given.get("mode") == Mode.NEVER.value:
        given = {"on": None, "to": None, **given}

    def edits(current: Settings) -> Sequence[Edit]:
        _require(current, params["id"])
        return keyed(_RULES, params["id"], **given)

    return await commit(context, request, edits)


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
        _require(current, rule_id)
        rules = compile_rules(current.cloud).rules
        moved = next(rule for rule in rules if rule.id == rule_id)
        others = [rule for rule in rules if rule.id != rule_id and _is_never(rule) == _is_never(moved)]
        place = _place(current, moved, others, wanted[0], request.params.get(wanted[0]))
        priorities = moved_priorities(others, moved, place)
        return [Edit((*_RULES, name, "priority"), value) for name, value in priorities.items()]

    return await commit(context, request, edits)


def _place(current: Settings, moved: Rule, others: Sequence[Rule], where: str, other_id: Any) -> int:
    """Return how many of the others come before the rule then."""
    if where in {"first", "last"}:
        return 0 if where == "first" else len(others)
    _require(current, other_id)
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


async def enable(context: ControlContext, request: Request) -> Reply:
    """Have the rule count."""
    return await _switch(context, request, value=None)


async def disable(context: ControlContext, request: Request) -> Reply:
    """Keep the rule, and do without it."""
    return await _switch(context, request, value=False)


async def _switch(context: ControlContext, request: Request, *, value: bool | None) -> Reply:
    def edits(current: Settings) -> Sequence[Edit]:
        _require(current, request.params["id"])
        return [Edit((*_RULES, request.params["id"], "enabled"), value)]

    return await commit(context, request, edits)


async def remove(context: ControlContext, request: Request) -> Reply:
    """Remove a rule."""

    def edits(current: Settings) -> Sequence[Edit]:
        _require(current, request.params["id"])
        return [Edit((*_RULES, request.params["id"]), None)]

    return await commit(context, request, edits)


def _require(settings: Settings, rule_id: str) -> None:
    if rule_id not in settings.cloud.rules:
        raise NotFound(f"there is no rule {rule_id!r}", hint="mlxctl cloud rule list", param="id")


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
