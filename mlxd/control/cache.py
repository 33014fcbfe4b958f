"""`cache.*`: what keeps prompts reusable."""

from __future__ import annotations

from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page, place_of_number
from mlxd.protocol.noise import RULES


@handles("cache.rules")
async def list_rules(context: ControlContext, request: Request) -> Reply:
    """Return the noise rules in the order of their table."""
    off = context.store.current.http.noise_rules_off
    shown = [
        {
            "name": rule.name,
            "enabled": rule.name not in off,
            "removes": rule.removes,
            "clients": list(rule.clients),
            "matches": [
                {"role": match.role, "place": match.place.value, "pattern": match.pattern} for match in rule.matches
            ],
        }
        for rule in RULES
    ]
    return make_page(request.params, "rules", shown, place_of_number)
