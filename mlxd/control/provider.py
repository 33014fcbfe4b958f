"""`cloud.provider.*`: upstream servers. Of a key only where it is kept, and whether the upstream has refused it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict

from mlxd.config import Edit, Edits
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.resource import Entries
from mlxd.control.rule import RULES
from mlxd.protocol.errors import InUse, InvalidRequest
from mlxd.protocol.resource import RESOURCES
from mlxd.protocol.settings import ProviderSettings, Settings


class _Providers(Entries):
    def describe(self, context: ControlContext, entry_id: str, entry: ProviderSettings) -> dict[str, Any]:
        """Return a provider; of its key only where it comes from."""
        return {
            "id": entry_id,
            "kind": entry.kind,
            "base_url": entry.base_url,
            "auth_env": None if entry.auth is None else entry.auth.get("env"),
            "auth": format_reference(entry.auth),
            "state": "auth_failed" if entry_id in context.upstreams.refused else "ok",
        }

    async def details(self, context: ControlContext, entry_id: str, entry: ProviderSettings) -> dict[str, Any]:
        """Return its timeouts, the rules that use it, and what is wrong with its key."""
        return {
            "proxy": entry.proxy,
            "timeouts_ms": {name: round(1000 * seconds) for name, seconds in asdict(entry.timeouts).items()},
            "rules": _users(context.store.current, entry_id),
            "key_problem": await context.secrets.problem(entry_id, entry.auth),
        }

    def given(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is given, the key's place as the settings have it."""
        given = super().given(params)
        if "auth" in params and "auth_env" in params:
            raise InvalidRequest("auth and auth_env say the same thing; give one of them", param="auth")
        if "auth" in params:
            given["auth"] = _parse_reference(params["auth"])
        if "auth_env" in params:
            given["auth"] = {"env": params["auth_env"]}
        return given

    def release(self, current: Settings, entry_id: str, params: Mapping[str, Any]) -> Sequence[Edit]:
        """Refuse to remove what a rule uses; with `cascade` take it out of the rules, and those away that are empty."""
        users = _users(current, entry_id)
        if users and not params.get("cascade", False):
            raise InUse(
                f"provider {entry_id!r} is used by {', '.join(users)}",
                hint=f"mlxctl cloud provider remove {entry_id} --cascade\nmlxctl cloud rule remove {users[0]}",
                param="id",
                data={"rules": users},
            )
        edits = []
        for rule_id in users:
            left = [to for to in current.cloud.rules[rule_id].to if not to.startswith(f"{entry_id}/")]
            edits.append(Edit((*RULES.path, rule_id, "to"), left) if left else Edit((*RULES.path, rule_id), None))
        return edits

    async def commit(self, context: ControlContext, request: Request, edits: Edits) -> Reply:
        """Commit, and warn of a key that only a worker thread may look for."""
        reply = await super().commit(context, request, edits)
        provider = context.store.current.cloud.providers.get(request.params["id"])
        problem = None if provider is None else await context.secrets.problem(request.params["id"], provider.auth)
        if problem is not None and problem not in reply["warnings"]:
            reply["warnings"].append(problem)
        return reply


PROVIDERS = _Providers(RESOURCES["cloud.provider"])


def format_reference(auth: Mapping[str, str] | None) -> str | None:
    """Return where a key is, as `auth` of the operations takes it."""
    return None if auth is None else ":".join(*auth.items())


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


@handles("cloud.provider.test")
async def test(context: ControlContext, request: Request) -> Reply:
    """Call the provider once and return what came back: status, time, models or usage; failures are an answer too."""
    provider_id = request.params["id"]
    provider = PROVIDERS.find(context.store.current, provider_id)
    found = await context.upstreams.test(provider_id, provider, request.params.get("model"))
    return {"id": provider_id, "url": found.url, "ok": found.is_ok, "status": found.status, "ms": found.ms,
            "code": found.code, "reason": found.reason, "models": list(found.models)}  # fmt: skip


def _users(settings: Settings, provider_id: str) -> list[str]:
    prefix = f"{provider_id}/"
    rules = settings.cloud.rules.items()
    return sorted(rule_id for rule_id, rule in rules if any(to.startswith(prefix) for to in rule.to))
