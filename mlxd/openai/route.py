"""What comes before an answer: read the body, ask the router, hand the request to an upstream or call it local."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from mlxd.cloud.router import CloudRoute
from mlxd.openai.body import read_object
from mlxd.openai.context import CONTEXT, EXCHANGE
from mlxd.openai.relay import Errand, relay
from mlxd.openai.schema import model_of
from mlxd.protocol.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Local:
    """A request for a model of this machine, not checked any further."""

    model: str
    body: dict[str, Any]
    reject_unknown: bool


async def admit(request: web.Request, endpoint: str) -> Local | web.StreamResponse:
    """Return the local request, or the answer of the upstream that a rule names.

    Routed by the name alone, before anything asks whether the model is here or the body is one that we would take.

    Args:
        request: the HTTP request.
        endpoint: the path under the upstream's base address, such as `chat/completions`.

    Raises:
        MlxdError: the body is no JSON object with a model, the cloud is off, or the upstream failed.
    """
    context = request.app[CONTEXT]
    raw, body = await read_object(request)
    model = model_of(body)
    route = context.router.route(model, local_only=_is_local_only(request))
    if isinstance(route, CloudRoute):
        request[EXCHANGE].note_cloud(route)
        return await relay(request, Errand(route, endpoint, raw, wants_stream=body.get("stream") is True))
    return Local(model, body, reject_unknown=context.store.current.http.unknown_fields == "reject")


def _is_local_only(request: web.Request) -> bool:
    """Whether the client forbids the cloud for this request; it can narrow what the rules allow, never widen it."""
    asked = request.headers.get("X-Mlxd-Route")
    if asked not in (None, "local"):
        raise InvalidRequest(f"X-Mlxd-Route can only be 'local', not {asked[:40]!r}", param="x-mlxd-route")
    return asked == "local"
