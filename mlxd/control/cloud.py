"""`cloud.*`: whether anything may leave the machine, all of it at a glance, breakers, what a day may cost, prices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlxd.cloud.breaker import BreakerStatus
from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page
from mlxd.control.provider import PROVIDERS
from mlxd.control.resource import Entries
from mlxd.control.rule import RULES
from mlxd.control.setting import commit
from mlxd.protocol.errors import InvalidRequest, NotFound
from mlxd.protocol.resource import RESOURCES
from mlxd.protocol.settings import PriceSettings, Settings

_BUDGET = ("cloud", "budget")
_MICRO = 1_000_000


@handles("cloud.show")
async def show(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return all of it."""
    return {
        "enabled": context.store.current.cloud.enabled,
        "providers": PROVIDERS.describe_all(context),
        "rules": RULES.describe_all(context),
        "breakers": [_describe_breaker(status) for status in context.upstreams.breakers.list()],
        "budget": describe_budget(context),
    }


@handles("cloud.enable")
async def enable(context: ControlContext, request: Request) -> Reply:
    """Let rules send requests out."""
    return await commit(context, request, [Edit(("cloud", "enabled"), value=True)])


@handles("cloud.disable")
async def disable(context: ControlContext, request: Request) -> Reply:
    """Send nothing out any more; requests that an upstream is answering end as they began."""
    return await commit(context, request, [Edit(("cloud", "enabled"), value=False)])


@handles("cloud.breaker.list")
async def list_breakers(context: ControlContext, request: Request) -> Reply:
    """Return the targets that were tried lately, by name."""
    shown = [_describe_breaker(status) for status in context.upstreams.breakers.list()]
    return make_page(request.params, "breakers", shown, lambda index: shown[index]["target"])


@handles("cloud.breaker.reset")
async def reset_breakers(context: ControlContext, request: Request) -> Reply:
    """Have a target, or all, asked again; return how many were left alone."""
    target = request.params.get("target")
    breakers = context.upstreams.breakers
    if target is not None and target not in {status.target for status in breakers.list()}:
        raise NotFound(
            f"nothing was sent to {target!r} since the start", hint="mlxctl cloud breaker list", param="target"
        )
    return {"closed": breakers.reset(target)}


def _describe_breaker(status: BreakerStatus) -> dict[str, Any]:
    return {
        "target": status.target,
        "state": status.state.value,
        "failures": status.failures,
        "attempts": status.attempts,
        "retry_in_ms": None if status.retry_in_s is None else round(1000 * status.retry_in_s),
    }


@handles("cloud.budget.show")
async def show_budget(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the bounds, today's sums, and the targets of rules that have no price while money is bounded."""
    return describe_budget(context)


def describe_budget(context: ControlContext) -> dict[str, Any]:
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


def budget_problems(context: ControlContext) -> Iterator[str]:
    """Yield a sentence for what keeps a bounded day from being counted, so that nothing is sent."""
    budget, bounds = context.upstreams.budget, context.store.current.cloud.budget
    if bounds.usd_per_day is not None or bounds.requests_per_day is not None:
        if budget.today.doubt is not None:
            yield f"nothing is sent to the cloud until 00:00 UTC, nobody knows what was sent: {budget.today.doubt}"
        if budget.problem is not None:
            yield f"nothing is sent to the cloud, its budget is not kept: {budget.problem}"


@handles("cloud.budget.set")
async def set_budget(context: ControlContext, request: Request) -> Reply:
    """Change the bounds that are given."""
    names = ("usd_per_day", "requests_per_day")
    edits = [Edit((*_BUDGET, name), request.params[name]) for name in names if name in request.params]
    if not edits:
        raise InvalidRequest("there is nothing to set", param="usd_per_day", hint="mlxctl cloud budget set --help")
    return await commit(context, request, edits)


class _Prices(Entries):
    def entries(self, context: ControlContext) -> Iterable[tuple[str, PriceSettings]]:
        """Return the prices by target."""
        return sorted(context.store.current.cloud.prices.items())

    def new(self, current: Settings, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return a price; of a provider that there is, so that a typo does not stay unnoticed."""
        target = params["target"]
        provider_id, slash, model = target.partition("/")
        if not slash or not model:
            raise InvalidRequest(f"{target!r} is not PROVIDER/MODEL", param="target", hint="mlxctl cloud rule list")
        if provider_id not in current.cloud.providers:
            raise NotFound(f"there is no provider {provider_id!r}", hint="mlxctl cloud provider list", param="target")
        return target, self.given(params)


PRICES = _Prices(RESOURCES["cloud.price"])
