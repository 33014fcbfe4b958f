"""The walk of every request that a model answers: read, routed by its name, answered here, by an upstream, or in turn.

Routed before anything asks whether the model is here or the body is one that we would take. A local failure that a rule
is for goes on to the cloud, as long as no content has been sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from mlxd.catalog import ModelRef
from mlxd.cloud.errand import Errand, passed_headers
from mlxd.cloud.router import Decision
from mlxd.engine.base import Delta, Prefilling
from mlxd.engine.vector import EmbeddingRequest
from mlxd.http.body import read_object
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE
from mlxd.http.generation import hold
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.relay import relay
from mlxd.http.schema import Text, checked, wrong
from mlxd.http.stream import COMMENT, EventStream
from mlxd.protocol.errors import FirstTokenTimeout, InvalidRequest, MlxdError
from mlxd.protocol.settings import CloudSettings, ModelSettings
from mlxd.renderer import Job, Renderer

# More than any model has, and as many as a cloud rule can match.
_MAX_NAME_CHARACTERS = 512


@dataclass(slots=True)
class Asked:
    """A request for a model of this machine, not checked any further.

    Where the body says nothing of a sampling param, it has what the model's settings say.
    """

    request: web.Request
    id: str  # of the request
    now_s: int  # unix time
    model: ModelRef
    body: dict[str, Any]  # empty once it is read: what nobody reads of it is not kept while the request waits and runs
    omitted: Omissions
    noise: NoiseFilter  # for the texts of the body; those that a cloud is given are others
    stream: EventStream
    is_stream: bool
    is_last: bool  # nobody else could answer; where one could, nothing is sent before the first content


@dataclass(frozen=True, slots=True)
class Api:
    """One route as clients know it.

    Attributes:
        protocol: whose protocol it is: openai or anthropic.
        endpoint: its path under /v1.
        read: checks the body, and says what it asks of a model and who writes the answer.
        relayed: makes what writes the answer of an upstream that speaks another protocol, once it is told the answer's
            id: from the body, the model as the client calls it, and the unix time. None where no other can answer.
        generates: False where nothing is, so that the body has no sampling params and asks for no stream.
        keep_alive: what is sent in the silence of a stream, unless the renderer knows better.
    """

    protocol: str
    endpoint: str
    read: Callable[[Asked], Job]
    relayed: Callable[[Mapping[str, Any], str, int], Callable[[str], Renderer]] | None = None
    generates: bool = True
    keep_alive: bytes = COMMENT


async def answer(request: web.Request, api: Api) -> web.StreamResponse:
    """Answer the request.

    Raises:
        MlxdError: the body is no JSON object with a model, or nobody could answer; where an upstream was asked after a
            local failure, it is the local one, with the attempts.
    """
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    exchange.endpoint = api.endpoint
    with context.intake.place() as place:
        raw, body = await read_object(request, place)
        settings = context.store.current
        exchange.asked = model_of(body)
        model = context.catalog.ref(exchange.asked, settings)
        if exchange.api_key is not None:
            exchange.api_key.require(model.asked, model.id)
        decision = context.router.route(model.asked, model.id, local_only=_is_local_only(request))
        check_length(body, "input" if api.endpoint.startswith("responses") else "messages", settings.http.max_messages)
        asked = _asked(request, api, decision, model, body)
        if decision.routes:
            errand = _errand(asked, api, bytes(raw), body)
            answering = _answer_in_turn(asked, api, decision, errand, settings.cloud)
        else:
            answering = _answer_here(asked, api, decision)
        del raw, body
        if not asked.is_stream:
            return await answering
        async with asked.stream:
            return await answering
        return asked.stream.response  # what went wrong has been told in it


async def _answer_in_turn(
    asked: Asked, api: Api, decision: Decision, errand: Errand, cloud: CloudSettings
) -> web.StreamResponse:
    """Answer here, if this machine is asked first and as long as it does; else by an upstream."""
    cause: MlxdError | None = None
    if decision.asks_local:
        try:
            return await _answer_here(asked, api, decision)
        except MlxdError as error:
            if asked.stream.has_content or not decision.catches(error):
                raise
            cause = error
    return await relay(asked.request, decision, errand, cloud, asked.stream, cause)


async def _answer_here(asked: Asked, api: Api, decision: Decision) -> web.StreamResponse:
    """Answer on this machine; where a rule wants it so, within the time that its first target would have."""
    job, stream, limit_s = api.read(asked), asked.stream, None
    asked.body = {}
    if decision.routes and FirstTokenTimeout.code in decision.triggers:
        limit_s = decision.routes[0].provider.timeouts.first_token
    stream.renderer = job.renderer
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await _write(asked, job, limit)
    except TimeoutError:
        if not limit.expired():
            raise
        raise FirstTokenTimeout(f"{asked.model.asked} has said nothing within {limit_s:g} s") from None
    except MlxdError as error:
        _rename(error, job.fields)
        last = job.renderer.fail(error) if stream.has_content else b""
        if not last:
            raise
        asked.request[EXCHANGE].note_error(error)
        await stream.send(last)
        return stream.response
    finally:
        stream.renderer = None
        job.renderer.close()


async def _write(asked: Asked, job: Job, limit: asyncio.Timeout) -> web.StreamResponse:
    """Hold the model, and write what its events are for the client; *limit* is over with the first token."""
    if asked.model.is_embedding and not isinstance(job.asked, EmbeddingRequest):  # it is not loaded to find that out
        message = f"{asked.model.asked!r} is an embedding model and makes no text"
        raise InvalidRequest(message, hint="POST /v1/embeddings", param="model")
    stream, renderer, lead = asked.stream, job.renderer, b""
    async with hold(asked.request, asked.model) as held, aclosing(held.events(job)) as events:
        async for index, event in events:
            if isinstance(event, Delta):
                if limit.when() is not None and not limit.expired():
                    limit.reschedule(None)
                if not (event.text or event.logprobs or event.calls):
                    continue
            data = renderer.event(index, event)
            if not asked.is_stream:
                continue
            if isinstance(event, Prefilling) and not asked.is_last:
                lead += data
            elif data:
                await stream.send(lead + data)
                lead = b""
        if asked.is_stream and (last := renderer.end()):
            await stream.send(last)
    return stream.response if asked.is_stream else web.Response(body=renderer.whole(), content_type="application/json")


def _asked(request: web.Request, api: Api, decision: Decision, model: ModelRef, body: dict[str, Any]) -> Asked:
    """Return what this machine is given."""
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    http = context.store.current.http
    omitted = Omissions(
        model.asked, rejects_fields=http.unknown_fields == "reject", rejects_media=http.media == "reject"
    )
    noise = NoiseFilter(http.noise_rules_off)
    exchange.ignored, exchange.noise_removed = omitted.names, noise.removed
    is_stream = api.generates and body.get("stream") is True
    if not decision.asks_local:
        body = {}
    elif api.generates and model.settings is not None:
        body = filled(body, model.settings)
    return Asked(
        request,
        exchange.request_id,
        int(context.now()),
        model,
        body,
        omitted,
        noise,
        EventStream(request, api.keep_alive),
        is_stream,
        is_last=not decision.routes,
    )


def _errand(asked: Asked, api: Api, raw: bytes, body: Mapping[str, Any]) -> Errand:
    """Return what upstreams are given."""
    given = asked.request.headers
    hops = ", ".join(given.getall(hdrs.VIA, [])).count("mlxd")
    headers = passed_headers(api.protocol, lambda name: given.getall(name, []))
    renderer = None if api.relayed is None else api.relayed(body, asked.model.asked, asked.now_s)
    return Errand(api.protocol, api.endpoint, raw, asked.is_stream, hops + 1, headers, renderer)


def _rename(error: MlxdError, fields: Mapping[str, str]) -> None:
    """Have an error of the engine name the field as the API does."""
    ours = fields.get(error.param or "")
    if error.param is None or ours is None:
        return
    if error.param != "messages":  # a word, not only a name
        error.message = error.message.replace(error.param, ours)
        error.hint = None if error.hint is None else error.hint.replace(error.param, ours)
    error.param = ours


def model_of(body: Mapping[str, Any]) -> str:
    """Return the model asked for: all that routing needs to know of a body."""
    name: str = checked(Text, "model", body.get("model"))
    # It is compared with every known name, and stands in a header and in the log.
    if len(name) > _MAX_NAME_CHARACTERS:
        raise wrong("model", name, f"a name of at most {_MAX_NAME_CHARACTERS} characters")
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


def filled(body: dict[str, Any], defaults: ModelSettings) -> dict[str, Any]:
    """Return the body with the model's own sampling params where it says nothing of them; null says nothing."""
    return body | {name: value for name, value in defaults.sampling.items() if body.get(name) is None}


def _is_local_only(request: web.Request) -> bool:
    """Whether the client forbids the cloud for this request; it can narrow what the rules allow, never widen it."""
    asked = request.headers.get("X-Mlxd-Route")
    if asked not in (None, "local"):
        raise InvalidRequest(f"X-Mlxd-Route can only be 'local', not {asked[:40]!r}", param="x-mlxd-route")
    return asked == "local"
