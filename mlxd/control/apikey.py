"""`apikey.*`: the keys that clients on TCP need."""

from __future__ import annotations

from typing import Any

from mlxd.apikey import KeyStatus
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page, place_of_number
from mlxd.protocol.errors import InUse


@handles("apikey.create")
async def create(context: ControlContext, request: Request) -> Reply:
    """Make a key and show it for the only time."""
    params = request.params
    is_first = not context.api_keys.is_required
    key, secret = await context.api_keys.create(params["name"], params.get("models", ()), params.get("rate"))
    context.bus.publish("apikey.created", {"name": key.name})
    return {**_describe(KeyStatus(key, 0, None)), "key": secret, "is_first": is_first}


@handles("apikey.list")
async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return the keys by name."""
    problem = context.api_keys.problem
    if problem is not None:
        raise problem
    return make_page(request.params, "keys", [_describe(status) for status in context.api_keys.list()], place_of_number)


@handles("apikey.revoke")
async def revoke(context: ControlContext, request: Request) -> Reply:
    """Take a key away; requests that it has begun run on."""
    key = context.api_keys.get(request.params["name"])
    settings, http = context.store.current.http, context.info.http()
    is_open = not (settings.is_loopback and http.is_loopback)  # by wish, or still
    if len(context.api_keys.list()) == 1 and is_open and not settings.allow_open:
        where = f"http.host is {settings.host}" if http.is_loopback else f"the server listens on {http.url}"
        raise InUse(
            f"{key.name!r} is the last API key, and {where}: whoever reaches it could use the models",
            hint="mlxctl apikey create OTHER first, or mlxctl config set http.host=127.0.0.1",
            param="name",
        )
    key = await context.api_keys.revoke(request.params["name"])
    context.bus.publish("apikey.revoked", {"name": key.name})
    return {"name": key.name, "is_required": context.api_keys.is_required}


def _describe(status: KeyStatus) -> dict[str, Any]:
    key = status.key
    return {
        "name": key.name,
        "models": list(key.models),
        "rate": None if key.rate is None else str(key.rate),
        "created_at_ms": key.created_at_ms,
        "last_used_at_ms": status.last_used_at_ms,
        "requests": status.requests,
    }
