"""What comes before an answer: read the body, ask the router, hand the request to an upstream or call it local."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from mlxd.cloud.router import CloudRoute
from mlxd.http import field
from mlxd.http.body import read_object
from mlxd.http.context import CONTEXT, EXCHANGE
from mlxd.http.relay import Errand, relay
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.settings import ModelSettings

# More than any model has, and as many as a cloud rule can match.
_MAX_NAME_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class Local:
    """A request for a model of this machine, not checked any further.

    Where the body says nothing of a sampling param, it has what the model's settings say.
    """

    model: str  # as the client calls it: its id, or an alias
    body: dict[str, Any]
    reject_unknown: bool


def model_of(body: Mapping[str, Any]) -> str:
    """Return the model asked for: all that routing needs to know of a body."""
    name = field.text("model", body.get("model"))
    # It is compared with every known name, and stands in a header and in the log.
    if len(name) > _MAX_NAME_CHARACTERS:
        raise field.wrong("model", name, f"a name of at most {_MAX_NAME_CHARACTERS} characters")
    return name


async def admit(request: web.Request, endpoint: str, *, answers: bool = True) -> Local | web.StreamResponse:
    """Return the local request, or the answer of the upstream that a rule names.

    Routed by the name alone, before anything asks whether the model is here or the body is one that we would take.

    Args:
        request: the HTTP request.
        endpoint: the path under the upstream's base address, such as `chat/completions`.
        answers: False where nothing is generated, so that sampling params have no place in the body.

    Raises:
        MlxdError: the body is no JSON object with a model, the cloud is off, or the upstream failed.
    """
    context = request.app[CONTEXT]
    raw, body = await read_object(request)
    model = model_of(body)
    route = context.router.route(model, local_only=_is_local_only(request))
    if isinstance(route, CloudRoute) and endpoint.startswith("messages"):
        raise UnsupportedParameter(
            f"{model!r} goes to {route.target}, which speaks OpenAI's protocol and cannot be reached by this route",
            hint="POST /v1/chat/completions",
            param="model",
        )
    if isinstance(route, CloudRoute):
        request[EXCHANGE].note_cloud(route)
        return await relay(request, Errand(route, endpoint, raw, wants_stream=body.get("stream") is True))
    settings = context.store.current
    defaults = settings.models.get(context.catalog.alias_target(model)) if answers else None
    return Local(model, filled(body, defaults), reject_unknown=settings.http.unknown_fields == "reject")


def filled(body: dict[str, Any], defaults: ModelSettings | None) -> dict[str, Any]:
    """Return the body with the model's own sampling params where it says nothing of them; null says nothing."""
    if defaults is None:
        return body
    return body | {name: value for name, value in defaults.sampling.items() if body.get(name) is None}


def _is_local_only(request: web.Request) -> bool:
    """Whether the client forbids the cloud for this request; it can narrow what the rules allow, never widen it."""
    asked = request.headers.get("X-Mlxd-Route")
    if asked not in (None, "local"):
        raise InvalidRequest(f"X-Mlxd-Route can only be 'local', not {asked[:40]!r}", param="x-mlxd-route")
    return asked == "local"
