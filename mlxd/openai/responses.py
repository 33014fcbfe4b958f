"""POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

import orjson
from aiohttp import web

from mlxd.engine.base import Delta, Finished, Prefilling
from mlxd.http.context import CONTEXT
from mlxd.http.dispatch import Local, Surface, dispatch
from mlxd.http.generation import AnswerEvent, generation
from mlxd.http.stream import COMMENT
from mlxd.openai.response_event import ResponseEvents
from mlxd.openai.response_item import new_id
from mlxd.openai.response_schema import ParsedResponse, parse_input_count, parse_response
from mlxd.openai.response_store import RESPONSES, StoredResponse, owner_of
from mlxd.protocol.errors import MlxdError

# What the engine calls as chats do.
_FIELDS = {"max_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort", "messages": "input"}


async def post_responses(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, streamed or whole, here or by an upstream."""
    return await dispatch(request, RESPONSE)


async def post_input_tokens(request: web.Request) -> web.StreamResponse:
    """Say how many tokens a conversation is for the model, which is loaded for it."""
    return await dispatch(request, INPUT_TOKENS)


async def _response(request: web.Request, local: Local) -> web.StreamResponse:
    parsed = parse_response(
        local.take_body(),
        request.app[RESPONSES],
        owner_of(request),
        local.noise,
        local.omitted,
    )
    events = ResponseEvents(
        new_id("resp"),
        _now_s(request),
        local.model,
        parsed.repeated,
        parsed.names,
        has_logprobs=parsed.request.logprobs is not None,
        seals_thoughts=parsed.seals_thoughts,
    )
    try:
        if parsed.stream:
            return await _stream(request, local, parsed, events)
        return await _answer(request, local.model, parsed, events)
    except MlxdError as error:
        _rename(error)
        raise


async def _count(request: web.Request, local: Local) -> web.StreamResponse:
    counted = parse_input_count(
        local.take_body(),
        request.app[RESPONSES],
        owner_of(request),
        local.noise,
        local.omitted,
    )
    async with generation(request, local.model, _FIELDS) as held:
        tokens = await held.count(counted)
    body = {"object": "response.input_tokens", "input_tokens": tokens}
    return web.Response(body=orjson.dumps(body), content_type="application/json")


RESPONSE = Surface("openai", "responses", _response)
INPUT_TOKENS = Surface("openai", "responses/input_tokens", _count, samples=False)


async def _stream(
    request: web.Request, local: Local, parsed: ParsedResponse, events: ResponseEvents
) -> web.StreamResponse:
    store, owner = request.app[RESPONSES], owner_of(request)

    async def write(_: int, happened: AnswerEvent) -> None:
        is_new = not events.has_begun
        if isinstance(happened, Delta):
            data = events.take(happened)
        elif isinstance(happened, Prefilling) and local.is_last:  # else the cloud may answer instead
            data = events.begin()
        elif isinstance(happened, Finished):
            data = events.finish(happened, _now_s(request))
            _keep(request, parsed, events)
        else:
            return
        if is_new and events.has_begun and not events.has_ended:
            begun = orjson.dumps(events.body()) if parsed.stores else None
            store.begin(owner, events.id, held.running.number, begun)
        if data:
            await local.stream.send(data)

    local.stream.keep_alive = lambda: events.keep_alive() or COMMENT
    try:
        async with generation(request, local.model, _FIELDS) as held:
            await held.deliver([parsed.request], 1, write)
    except MlxdError as error:
        if not events.has_begun or events.has_ended:
            raise
        last = events.fail(error)
        _keep(request, parsed, events)
        await local.stream.send(last)
    finally:
        store.end(owner, events.id, None)  # a client that went away keeps nothing
    return local.stream.response


async def _answer(request: web.Request, model: str, parsed: ParsedResponse, events: ResponseEvents) -> web.Response:
    async def take(_: int, happened: AnswerEvent) -> None:
        if isinstance(happened, Delta):
            events.take(happened)
        elif isinstance(happened, Finished):
            events.finish(happened, _now_s(request))

    async with generation(request, model, _FIELDS) as held:
        await held.deliver([parsed.request], 1, take)
    return web.Response(body=_keep(request, parsed, events), content_type="application/json")


def _rename(error: MlxdError) -> None:
    """Have an error of the engine name the field as this API does."""
    ours = _FIELDS.get(error.param or "")
    if error.param == "messages":  # a word, not only a name
        error.param = ours
    elif error.param is not None and ours is not None:
        error.message = error.message.replace(error.param, ours)
        error.hint = None if error.hint is None else error.hint.replace(error.param, ours)
        error.param = ours


def _keep(request: web.Request, parsed: ParsedResponse, events: ResponseEvents) -> bytes:
    """Store the response as it ended, where that is wanted; return its body."""
    store, owner = request.app[RESPONSES], owner_of(request)
    shown = events.body()
    body = orjson.dumps(shown)
    if parsed.stores:
        ids = tuple(item["id"] for item in (*parsed.input_items, *shown["output"]))
        asked = orjson.dumps(parsed.input_items)
        store.add(StoredResponse(events.id, owner, body, asked, parsed.previous_id, ids))
    store.end(owner, events.id, body)
    return body


def _now_s(request: web.Request) -> int:
    return int(request.app[CONTEXT].now())
