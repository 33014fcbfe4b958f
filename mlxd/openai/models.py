"""GET /v1/models and /v1/models/{id}: what can be asked for, local and by exact cloud rules."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from mlxd.catalog import ModelEntry, context_limit
from mlxd.cloud.router import CloudRoute
from mlxd.http.context import CONTEXT, AppContext
from mlxd.http.exchange import EXCHANGE
from mlxd.openai.codex_models import codex_models
from mlxd.protocol.errors import ModelNotFound


async def get_models(request: web.Request) -> web.Response:
    """List all models by id; for Codex, which tells its version, as it describes them too."""
    context = request.app[CONTEXT]
    named = {entry.id: entry for entry in context.catalog.entries()} | context.catalog.aliases()
    listed = await _describe(context, {name: entry for name, entry in named.items() if entry.problem is None})
    listed |= {name: _cloud_model(name, route) for name, route in context.router.exact_names().items()}
    key = request[EXCHANGE].api_key
    models = [
        listed[name] for name in sorted(listed) if key is None or key.permits(name, context.catalog.alias_target(name))
    ]
    if "anthropic-version" in request.headers:  # the one path that both APIs have
        return _json(anthropic_list(models))
    listing = {"object": "list", "data": models}
    return _json(listing | {"models": codex_models(models)} if "client_version" in request.query else listing)


async def get_model(request: web.Request) -> web.Response:
    """Describe one model.

    Raises:
        Forbidden: the client's API key does not allow it.
        ModelNotFound: with the nearest names, or with why the model on disk cannot be served.
    """
    context = request.app[CONTEXT]
    name = request.match_info["id"]
    key = request[EXCHANGE].api_key
    if key is not None:
        key.require(name, context.catalog.alias_target(name))
    route = context.router.exact_names().get(name)
    is_anthropic = "anthropic-version" in request.headers
    if route is not None:
        model = _cloud_model(name, route)
        return _json(anthropic_model(model) if is_anthropic else model)
    entry = context.catalog.resolve(name)
    if entry.problem is not None:
        hint = f"mlxctl model show {name}"
        raise ModelNotFound(f"{name!r} cannot be served: {entry.problem}", param="model", hint=hint)
    model = (await _describe(context, {name: entry}))[name]
    return _json(anthropic_model(model) if is_anthropic else model)


def anthropic_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model as Anthropic's API describes one."""
    created = datetime.fromtimestamp(model["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": model["id"], "display_name": model["id"], "created_at": created}


def anthropic_list(models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a list of models as Anthropic's API has it, all on one page."""
    data = [anthropic_model(model) for model in models]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}


async def _describe(context: AppContext, named: dict[str, ModelEntry]) -> dict[str, dict[str, Any]]:
    """Return the OpenAI object of each name, which is a model's id or an alias of it."""
    states = {model.id: model for model in context.pool.status().models}
    # On a thread: the models may lie on a disk that sleeps.
    created = await asyncio.to_thread(lambda: [_changed_s(entry) for entry in named.values()])
    described = {}
    for (name, entry), created_s in zip(named.items(), created, strict=True):
        described[name] = {
            "id": name,
            "object": "model",
            "created": created_s,
            "owned_by": entry.id.partition("/")[0] if "/" in entry.id else "local",
            "state": states[entry.id].state if entry.id in states else "unloaded",
            "context_length": context_limit(context.store.current, entry),
            "size_bytes": entry.disk_bytes,
            "kind": entry.kind,
        }
        if name != entry.id:
            described[name]["alias_of"] = entry.id
        if entry.base is not None:
            described[name]["adapter_of"] = entry.base
    return described


def _changed_s(entry: ModelEntry) -> int:
    try:
        return int(entry.path.stat().st_mtime)
    except OSError:
        return 0  # it went away just now


def _cloud_model(name: str, route: CloudRoute) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": route.provider_id,
        "state": "cloud",
        "target": route.target,
    }


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
