"""`cloud.*`: providers, rules, and whether anything may leave the machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mlxd.cloud.router import Verdict
from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request
from mlxd.control.page import make_page, place_of_number
from mlxd.control.setting import commit, keyed
from mlxd.protocol.errors import NotFound
from mlxd.protocol.settings import Settings

_PROVIDERS = ("cloud", "providers")
_RULES = ("cloud", "rules")


async def show(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return all of it."""
    return {
        "enabled": context.store.current.cloud.enabled,
        "providers": _providers(context),
        "rules": _rules(context),
    }


async def enable(context: ControlContext, request: Request) -> Reply:
    """Let rules send requests out."""
    return await commit(context, request, [Edit(("cloud", "enabled"), value=True)])


async def disable(context: ControlContext, request: Request) -> Reply:
    """Send nothing out any more; requests that run end as they began."""
    return await commit(context, request, [Edit(("cloud", "enabled"), value=False)])


async def list_providers(context: ControlContext, request: Request) -> Reply:
    """Return the providers; of a key only where it comes from."""
    return make_page(request.params, "providers", _providers(context), place_of_number)


def _providers(context: ControlContext) -> list[dict[str, Any]]:
    return [
        {
            "id": provider_id,
            "kind": provider.kind,
            "base_url": provider.base_url,
            "auth_env": None if provider.auth is None else provider.auth.get("env"),
        }
        for provider_id, provider in context.store.current.cloud.providers.items()
    ]


async def add_provider(context: ControlContext, request: Request) -> Reply:
    """Add a provider, or change what is given of one."""
    given: dict[str, Any] = {"base_url": request.params["base_url"]}
    if "kind" in request.params:
        given["kind"] = request.params["kind"]
    if "auth_env" in request.params:
        given["auth"] = {"env": request.params["auth_env"]}
    return await commit(context, request, keyed(_PROVIDERS, request.params["id"], **given))


async def remove_provider(context: ControlContext, request: Request) -> Reply:
    """Remove a provider that no rule uses."""
    provider_id = request.params["id"]

    def edits(current: Settings) -> Sequence[Edit]:
        if provider_id not in current.cloud.providers:
            raise NotFound(f"there is no provider {provider_id!r}", hint="mlxctl cloud provider list", param="id")
        return [Edit((*_PROVIDERS, provider_id), None)]

    return await commit(context, request, edits)


async def list_rules(context: ControlContext, request: Request) -> Reply:
    """Return the rules in the order in which they are tried."""
    return make_page(request.params, "rules", _rules(context), place_of_number)


def _rules(context: ControlContext) -> list[dict[str, Any]]:
    return [
        {
            "id": rule.id,
            "match": rule.match,
            "mode": rule.mode.value,
            "to": [str(target) for target in rule.targets],
            "priority": rule.priority,
        }
        for rule in context.router.rules.rules
    ]


async def add_rule(context: ControlContext, request: Request) -> Reply:
    """Add a rule, or replace the one with this id; without an id, the one with this match."""
    params = request.params

    def edits(current: Settings) -> Sequence[Edit]:
        rule_id = params.get("id") or _rule_id(current, params["match"])
        values = {"match": params["match"], "mode": params["mode"], "to": params.get("to")}
        return keyed(_RULES, rule_id, **values, priority=params.get("priority"))

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


async def remove_rule(context: ControlContext, request: Request) -> Reply:
    """Remove a rule."""
    rule_id = request.params["id"]

    def edits(current: Settings) -> Sequence[Edit]:
        if rule_id not in current.cloud.rules:
            raise NotFound(f"there is no rule {rule_id!r}", hint="mlxctl cloud rule list", param="id")
        return [Edit((*_RULES, rule_id), None)]

    return await commit(context, request, edits)


async def explain_rule(context: ControlContext, request: Request) -> Reply:
    """Say where a request for a name would go, and what every rule makes of the name; sends nothing."""
    found = context.router.explain(request.params["model"])
    return {
        "model": found.model,
        "alias_of": found.alias_of,
        "route": found.outcome,
        "reason": found.reason,
        "rule": found.rule_id,
        "target": found.targets[0] if found.targets else None,
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
    return "matches, but a rule before it decides" if rule.matches else "does not match"
