"""`key.*`: the keys of providers. What goes in never comes out again: not in a reply, an event, a log or a message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.cloud.key import KeptKey, check_name, check_secret
from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page, place_of_number
from mlxd.control.provider import PROVIDERS, format_reference
from mlxd.control.setting import commit
from mlxd.protocol.errors import InUse
from mlxd.protocol.settings import Settings


@handles("key.set")
async def set_one(context: ControlContext, request: Request) -> Reply:
    """Keep the key; with `provider` have that use it, in one commit: when that fails, the key before is back."""
    name, secret, provider_id = request.params["name"], request.params["secret"].strip(), request.params.get("provider")
    check_name(name)
    check_secret(secret)
    if provider_id is not None:
        PROVIDERS.find(context.store.current, provider_id)
    if request.dry:
        return {**await commit(context, request, []), "name": name, "auth": None, "providers": []}
    kept, take_back = await context.keys.keep(name, secret)

    def edits(current: Settings) -> list[Edit]:
        if provider_id is None:
            return []
        PROVIDERS.find(current, provider_id)
        return [Edit(("cloud", "providers", provider_id, "auth"), kept.auth)]

    try:
        reply = await commit(context, request, edits)
    except BaseException:
        await take_back()
        raise
    users = _users(context.store.current, kept.auth)
    for user in users:
        context.upstreams.forgive(user)
    return {**reply, "name": name, "auth": format_reference(kept.auth), "providers": users}


@handles("key.list")
async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return the keys that are kept, and where the other providers' are: name, reference, users, what is wrong."""
    settings = context.store.current
    kept = await context.keys.kept()
    shown = [await _describe(context, key.name, key.auth) for key in kept]
    ours = [key.auth for key in kept]
    for provider_id, found in settings.cloud.providers.items():
        if found.auth is not None and dict(found.auth) not in ours:
            ours.append(dict(found.auth))
            shown.append(await _describe(context, None, found.auth, provider_id))
    return make_page(request.params, "keys", shown, place_of_number)


async def _describe(
    context: ControlContext, name: str | None, auth: Mapping[str, str], provider_id: str | None = None
) -> dict[str, Any]:
    users = _users(context.store.current, auth)
    owner = provider_id or (users[0] if users else name or "")
    return {
        "name": name,
        "auth": format_reference(auth),
        "providers": users,
        "problem": await context.secrets.problem(owner, auth),
    }


@handles("key.remove")
async def remove(context: ControlContext, request: Request) -> Reply:
    """Forget a key; one that a provider uses with `force` only."""
    key: KeptKey = await context.keys.find(request.params["name"])
    users = _users(context.store.current, key.auth)
    if users and not request.force:
        raise InUse(
            f"key {key.name!r} is used by {', '.join(users)}",
            hint=f"mlxctl cloud provider set {users[0]} --auth none\nthe same with --force",
            param="name",
            data={"providers": users},
        )
    if not request.dry:
        await context.keys.remove(key.name)
    shown = {"name": key.name, "auth": format_reference(key.auth), "providers": users}
    return {**shown, "dry_run": request.dry}


def _users(settings: Settings, auth: Mapping[str, str]) -> list[str]:
    providers = settings.cloud.providers.items()
    return sorted(name for name, found in providers if found.auth is not None and dict(found.auth) == dict(auth))
