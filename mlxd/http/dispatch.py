"""The way of every request that a model answers: read, routed by its name, answered here, by an upstream, or in turn.

Routed before anything asks whether the model is here or the body is one that we would take. A local failure that a rule
is for goes on to the cloud, as long as no content has been sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from mlxd.cloud.errand import SILENT, Errand, passed_headers
from mlxd.cloud.router import Decision
from mlxd.http import field
from mlxd.http.body import read_object
from mlxd.http.context import CONTEXT, EXCHANGE
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.relay import relay
from mlxd.http.stream import COMMENT, EventStream
from mlxd.protocol.errors import FirstTokenTimeout, InvalidRequest, MlxdError
from mlxd.protocol.settings import CloudSettings, ModelSettings

# More than any model has, and as many as a cloud rule can match.
_MAX_NAME_CHARACTERS = 512


@dataclass(slots=True)
class Local:
    """A request for a model of this machine, not checked any further.

    Where the body says nothing of a sampling param, it has what the model's settings say.
    """

    model: str  # as the client calls it: its id, or an alias
    omitted: Omissions
    noise: NoiseFilter  # for the texts of the body; those that a cloud is given are others
    stream: EventStream  # where a stream is written
    is_last: bool  # nobody else could answer; where one could, nothing is sent before the first content
    _body: dict[str, Any]

    def take_body(self) -> dict[str, Any]:
        """Return the body, for the only time: what nobody reads of it is not kept while the request waits and runs."""
        body, self._body = self._body, {}
        return body


Answer = Callable[[web.Request, Local], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Surface:
    """One route as clients know it, and how this machine answers it.

    Attributes:
        protocol: whose protocol it is: openai or anthropic.
        endpoint: its path under /v1.
        answer: answers a local request; a stream is written to `Local.stream`.
        samples: False where nothing is generated, so that sampling params have no place in the body.
        keep_alive: what is sent in the silence of a stream, unless the answer knows better.
    """

    protocol: str
    endpoint: str
    answer: Answer
    samples: bool = True
    keep_alive: bytes = COMMENT


async def dispatch(request: web.Request, surface: Surface) -> web.StreamResponse:
    """Answer the request.

    Raises:
        MlxdError: the body is no JSON object with a model, or nobody could answer; where an upstream was asked after a
            local failure, it is the local one, with the attempts.
    """
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    exchange.endpoint = surface.endpoint
    with context.intake.place() as place:
        way = _route(request, surface, *await read_object(request, place))
        if not way.errand.wants_stream:
            return await _answer(request, surface, way)
        async with way.local.stream:
            return await _answer(request, surface, way)
        return way.local.stream.response  # what went wrong has been told in it


@dataclass(frozen=True, slots=True)
class _Way:
    """Who may answer a request, in turn, and what each of them is given."""

    decision: Decision
    local: Local
    errand: Errand
    cloud: CloudSettings  # when the request came


def _route(request: web.Request, surface: Surface, raw: bytearray, body: dict[str, Any]) -> _Way:
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    model = exchange.asked = model_of(body)
    exchange.require_model(model, context.catalog.alias_target(model))
    decision = context.router.route(model, local_only=_is_local_only(request))
    settings = context.store.current
    check_length(body, "input" if surface.endpoint.startswith("responses") else "messages", settings.http.max_messages)
    hops = ", ".join(request.headers.getall(hdrs.VIA, [])).count("mlxd")
    wants_stream = body.get("stream") is True and surface.endpoint not in SILENT
    sent, headers = b"", {}
    if decision.routes:  # nobody else reads them
        sent, headers = bytes(raw), passed_headers(surface.protocol, lambda name: request.headers.getall(name, []))
    errand = Errand(surface.protocol, surface.endpoint, sent, wants_stream, hops + 1, headers)
    defaults = settings.models.get(context.catalog.alias_target(model)) if surface.samples else None
    omitted = Omissions(
        model,
        rejects_fields=settings.http.unknown_fields == "reject",
        rejects_media=settings.http.media == "reject",
    )
    noise = NoiseFilter(settings.http.noise_rules_off)
    exchange.ignored, exchange.noise_removed = omitted.names, noise.removed
    local_body = filled(body, defaults) if decision.asks_local else {}
    stream = EventStream(request, surface.keep_alive)
    local = Local(model, omitted, noise, stream, not decision.routes, local_body)
    return _Way(decision, local, errand, settings.cloud)


async def _answer(request: web.Request, surface: Surface, way: _Way) -> web.StreamResponse:
    cause: MlxdError | None = None
    if way.decision.asks_local:
        try:
            return await _answer_here(request, surface, way.local, way.decision)
        except MlxdError as error:
            if way.local.stream.has_content or not way.decision.catches(error):
                raise
            cause = error
    return await relay(request, way.decision, way.errand, way.cloud, way.local.stream, cause)


async def _answer_here(request: web.Request, surface: Surface, local: Local, decision: Decision) -> web.StreamResponse:
    """Answer on this machine; where a rule wants it so, within the time that its first target would have."""
    if FirstTokenTimeout.code not in decision.triggers or not decision.routes:
        return await surface.answer(request, local)
    limit_s = decision.routes[0].provider.timeouts.first_token
    exchange = request[EXCHANGE]
    try:
        async with asyncio.timeout(limit_s) as limit:
            exchange.on_first_token = lambda: None if limit.expired() else limit.reschedule(None)
            return await surface.answer(request, local)
    except TimeoutError:
        if not limit.expired():
            raise
        raise FirstTokenTimeout(f"{local.model} has said nothing within {limit_s:g} s") from None
    finally:
        exchange.on_first_token = None


def model_of(body: Mapping[str, Any]) -> str:
    """Return the model asked for: all that routing needs to know of a body."""
    name = field.text("model", body.get("model"))
    # It is compared with every known name, and stands in a header and in the log.
    if len(name) > _MAX_NAME_CHARACTERS:
        raise field.wrong("model", name, f"a name of at most {_MAX_NAME_CHARACTERS} characters")
    return name


def check_length(body: Mapping[str, Any], name: str, most: int) -> None:
    """Pass if the field *name* holds at most so many messages.

    Raises:
        InvalidRequest: there are more.
    """
    messages = body.get(name)
    if isinstance(messages, list) and len(messages) > most:
        hint = "mlxctl config set http.max_messages=N"
        raise InvalidRequest(f"{len(messages)} messages, and a request may have {most}", hint=hint, param=name)


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
