"""`cloud.provider.*`: upstream servers. Of a key only where it is kept, and whether the upstream has refused it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mlxd.config import Edit
from mlxd.control.context import ControlContext, Reply, Request
from mlxd.control.page import make_page, place_of_number
from mlxd.control.setting import commit
from mlxd.protocol.errors import InUse, InvalidRequest, NotFound
from mlxd.protocol.settings import ProviderSettings, Settings

_PROVIDERS = ("cloud", "providers")
_RULES = ("cloud", "rules")
_TIMEOUTS = ("connect", "first_token", "idle", "total")


async def list_all(context: ControlContext, request: Request) -> Reply:
    """Return the providers; of a key only where it comes from."""
    return make_page(request.params, "providers", describe_all(context), place_of_number)


def describe_all(context: ControlContext) -> list[dict[str, Any]]:
    """Return every provider of the settings in force."""
    providers = context.store.current.cloud.providers.items()
    refused = context.upstreams.refused
    return [_describe(provider_id, provider, refused) for provider_id, provider in providers]


def _describe(provider_id: str, provider: ProviderSettings, refused: Sequence[str]) -> dict[str, Any]:
    return {
        "id": provider_id,
        "kind": provider.kind,
        "base_url": provider.base_url,
        "auth_env": None if provider.auth is None else provider.auth.get("env"),
        "auth": format_reference(provider.auth),
        "state": "auth_failed" if provider_id in refused else "ok",
    }


def format_reference(auth: Mapping[str, str] | None) -> str | None:
    """Return where a key is, as `auth` of the operations takes it."""
    return None if auth is None else ":".join(*auth.items())


async def show(context: ControlContext, request: Request) -> Reply:
    """Return one provider, its timeouts, the rules that use it, and what is wrong with its key."""
    provider_id = request.params["id"]
    provider = find(context.store.current, provider_id)
    return {
        **_describe(provider_id, provider, context.upstreams.refused),
        "proxy": provider.proxy,
        "timeouts_ms": {name: round(1000 * seconds) for name, seconds in asdict(provider.timeouts).items()},
        "rules": _users(context.store.current, provider_id),
        "key_problem": await context.secrets.problem(provider_id, provider.auth),
    }


async def add(context: ControlContext, request: Request) -> Reply:
    """Add a provider, or change what is given of one."""
    return await _commit(context, request, _edits(request))


async def set_one(context: ControlContext, request: Request) -> Reply:
    """Change what is given of a provider."""
    given = _edits(request)
    if not given:
        raise InvalidRequest("there is nothing to set", param="id", hint="mlxctl cloud provider set --help")

    def edits(current: Settings) -> Sequence[Edit]:
        find(current, request.params["id"])
        return given

    return await _commit(context, request, edits)


async def _commit(context: ControlContext, request: Request, edits: Any) -> Reply:
    """Commit, and warn of a key that only a worker thread may look for."""
    reply = await commit(context, request, edits)
    provider_id = request.params["id"]
    provider = context.store.current.cloud.providers.get(provider_id)
    problem = None if provider is None else await context.secrets.problem(provider_id, provider.auth)
    if problem is not None and problem not in reply["warnings"]:
        reply["warnings"].append(problem)
    return reply


def _edits(request: Request) -> list[Edit]:
    params = request.params
    given: dict[str, Any] = {name: params[name] for name in ("base_url", "kind", "proxy") if name in params}
    if "auth" in params and "auth_env" in params:
        raise InvalidRequest("auth and auth_env say the same thing; give one of them", param="auth")
    if "auth" in params:
        given["auth"] = _parse_reference(params["auth"])
    if "auth_env" in params:
        given["auth"] = {"env": params["auth_env"]}
    entry = (*_PROVIDERS, params["id"])
    timeouts = [Edit((*entry, "timeouts", name), params[name]) for name in _TIMEOUTS if name in params]
    return [Edit((*entry, name), value) for name, value in given.items()] + timeouts


def _parse_reference(auth: str) -> dict[str, str] | None:
    if auth == "none":
        return None
    kind, colon, place = auth.partition(":")
    if kind not in {"env", "file", "keychain"} or not colon:
        # What was given is not repeated: it may be the key.
        raise InvalidRequest(
            "auth must be env:NAME, file:PATH, keychain:SERVICE/NAME or none; it says where the key is, never the key",
            param="auth",
            hint="mlxctl key set NAME --provider ID",
        )
    return {kind: place}


async def remove(context: ControlContext, request: Request) -> Reply:
    """Remove a provider that no rule uses; with `cascade` also from the rules, and those that are left empty."""
    provider_id = request.params["id"]

    def edits(current: Settings) -> Sequence[Edit]:
        find(current, provider_id)
        users = _users(current, provider_id)
        if users and not request.params.get("cascade", False):
            raise InUse(
                f"provider {provider_id!r} is used by {', '.join(users)}",
                hint=f"mlxctl cloud provider remove {provider_id} --cascade\nmlxctl cloud rule remove {users[0]}",
                param="id",
                data={"rules": users},
            )
        return [*_without(current, provider_id, users), Edit((*_PROVIDERS, provider_id), None)]

    return await commit(context, request, edits)


def _without(current: Settings, provider_id: str, users: Sequence[str]) -> list[Edit]:
    edits = []
    for rule_id in users:
        left = [to for to in current.cloud.rules[rule_id].to if not to.startswith(f"{provider_id}/")]
        edits.append(Edit((*_RULES, rule_id, "to"), left) if left else Edit((*_RULES, rule_id), None))
    return edits


async def test(context: ControlContext, request: Request) -> Reply:
    """Call the provider once and return what came back: status, time, models or usage; failures are an answer too."""
    provider_id = request.params["id"]
    provider = find(context.store.current, provider_id)
    found = await context.upstreams.test(provider_id, provider, request.params.get("model"))
    return {"id": provider_id, "url": found.url, "ok": found.is_ok, "status": found.status, "ms": found.ms,
            "code": found.code, "reason": found.reason, "models": list(found.models)}  # fmt: skip


def find(settings: Settings, provider_id: str) -> ProviderSettings:
    """Return a provider.

    Raises:
        NotFound: there is none of this name.
    """
    provider = settings.cloud.providers.get(provider_id)
    if provider is None:
        raise NotFound(f"there is no provider {provider_id!r}", hint="mlxctl cloud provider list", param="id")
    return provider


def _users(settings: Settings, provider_id: str) -> list[str]:
    prefix = f"{provider_id}/"
    rules = settings.cloud.rules.items()
    return sorted(rule_id for rule_id, rule in rules if any(to.startswith(prefix) for to in rule.to))
