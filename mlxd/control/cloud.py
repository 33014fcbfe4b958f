"""`cloud.*`: whether anything may leave the machine, all of it at a glance, and the breakers."""

from __future__ import annotations

from typing import Any

from mlxd.cloud.breaker import BreakerStatus
from mlxd.config import Edit
from mlxd.control import spending
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page
from mlxd.control.provider import PROVIDERS
from mlxd.control.rule import RULES
from mlxd.control.setting import commit
from mlxd.protocol.errors import NotFound


@handles("cloud.show")
async def show(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return all of it."""
    return {
        "enabled": context.store.current.cloud.enabled,
        "providers": PROVIDERS.describe_all(context),
        "rules": RULES.describe_all(context),
        "breakers": [_describe(status) for status in context.upstreams.breakers.list()],
        "budget": spending.describe(context),
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
    shown = [_describe(status) for status in context.upstreams.breakers.list()]
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


def _describe(status: BreakerStatus) -> dict[str, Any]:
    return {
        "target": status.target,
        "state": status.state.value,
        "failures": status.failures,
        "attempts": status.attempts,
        "retry_in_ms": None if status.retry_in_s is None else round(1000 * status.retry_in_s),
    }
