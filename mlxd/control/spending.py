"""`cloud.budget.*` and `cloud.price.*`: what a day may cost, what it has cost, and what targets cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request
from mlxd.control.page import make_page
from mlxd.control.setting import commit, keyed
from mlxd.protocol.errors import InvalidRequest, NotFound
from mlxd.protocol.settings import Settings

_BUDGET = ("cloud", "budget")
_PRICES = ("cloud", "prices")
_MICRO = 1_000_000


async def show_budget(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the bounds, today's sums, and the targets of rules that have no price while money is bounded."""
    return describe(context)


def describe(context: ControlContext) -> dict[str, Any]:
    """Return the budget; money in micro-USD."""
    cloud = context.store.current.cloud
    budget = context.upstreams.budget
    today, usd = budget.today, cloud.budget.usd_per_day
    targets = sorted({to for rule in cloud.rules.values() if rule.enabled for to in rule.to})
    return {
        "date": today.date,
        "usd_per_day_micro": None if usd is None else round(usd * _MICRO),
        "spent_micro": today.spent,
        "reserved_micro": budget.reserved,
        "requests_per_day": cloud.budget.requests_per_day,
        "requests": today.requests,
        "unpriced": [] if usd is None else [target for target in targets if target not in cloud.prices],
    }


def problems(context: ControlContext) -> Iterator[str]:
    """Yield a sentence for what keeps a bounded day from being counted, so that nothing is sent."""
    budget, bounds = context.upstreams.budget, context.store.current.cloud.budget
    if bounds.usd_per_day is not None or bounds.requests_per_day is not None:
        if budget.today.doubt is not None:
            yield f"nothing is sent to the cloud until 00:00 UTC, nobody knows what was sent: {budget.today.doubt}"
        if budget.problem is not None:
            yield f"nothing is sent to the cloud, its budget is not kept: {budget.problem}"


async def set_budget(context: ControlContext, request: Request) -> Reply:
    """Change the bounds that are given."""
    names = ("usd_per_day", "requests_per_day")
    edits = [Edit((*_BUDGET, name), request.params[name]) for name in names if name in request.params]
    if not edits:
        raise InvalidRequest("there is nothing to set", param="usd_per_day", hint="mlxctl cloud budget set --help")
    return await commit(context, request, edits)


async def list_prices(context: ControlContext, request: Request) -> Reply:
    """Return the prices in US dollars per million tokens, by target."""
    prices = sorted(context.store.current.cloud.prices.items())
    shown = [{"target": target, "input": price.input, "output": price.output} for target, price in prices]
    return make_page(request.params, "prices", shown, lambda index: str(shown[index]["target"]))


async def set_price(context: ControlContext, request: Request) -> Reply:
    """Say what a target costs; of a provider that there is, so that a typo does not stay unnoticed."""
    target = request.params["target"]
    provider_id, slash, model = target.partition("/")

    def edits(current: Settings) -> Sequence[Edit]:
        if not slash or not model:
            raise InvalidRequest(f"{target!r} is not PROVIDER/MODEL", param="target", hint="mlxctl cloud rule list")
        if provider_id not in current.cloud.providers:
            raise NotFound(f"there is no provider {provider_id!r}", hint="mlxctl cloud provider list", param="target")
        return keyed(_PRICES, target, input=request.params["input"], output=request.params["output"])

    return await commit(context, request, edits)


async def remove_price(context: ControlContext, request: Request) -> Reply:
    """Forget what a target costs."""
    target = request.params["target"]

    def edits(current: Settings) -> Sequence[Edit]:
        if target not in current.cloud.prices:
            raise NotFound(f"{target!r} has no price", hint="mlxctl cloud price list", param="target")
        return [Edit((*_PRICES, target), None)]

    return await commit(context, request, edits)
