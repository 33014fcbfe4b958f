"""POST /v1/responses and /v1/responses/input_tokens: the routes, and the renderer of a response."""

from __future__ import annotations

import orjson
from aiohttp import web

from mlxd.engine.base import AnswerEvent, Delta, Finished, Prefilling
from mlxd.http.context import CONTEXT
from mlxd.http.dispatch import Api, Asked, answer
from mlxd.http.exchange import EXCHANGE
from mlxd.openai.response_event import ResponseEvents
from mlxd.openai.response_item import new_id
from mlxd.openai.response_schema import ParsedResponse, parse_input_count, parse_response
from mlxd.openai.response_store import RESPONSES, StoredResponse, owner_of
from mlxd.protocol.errors import MlxdError
from mlxd.renderer import CountRenderer, Job, Renderer

# What the engine calls as chats do.
_FIELDS = {"max_tokens": "max_output_tokens", "reasoning_effort": "reasoning.effort", "messages": "input"}


async def post_responses(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, streamed or whole, here or by an upstream."""
    return await answer(request, RESPONSE)


async def post_input_tokens(request: web.Request) -> web.StreamResponse:
    """Say how many tokens a conversation is for the model, which is loaded for it."""
    return await answer(request, INPUT_TOKENS)


def _read(asked: Asked) -> Job:
    request = asked.request
    parsed = parse_response(asked.body, request.app[RESPONSES], owner_of(request), asked.noise, asked.omitted)
    return Job(ResponseRenderer(request, asked.model.asked, parsed), [parsed.request], fields=_FIELDS)


def _read_count(asked: Asked) -> Job:
    request = asked.request
    counted = parse_input_count(asked.body, request.app[RESPONSES], owner_of(request), asked.noise, asked.omitted)
    return Job(CountRenderer(object="response.input_tokens"), [counted], only_counts=True, fields=_FIELDS)


RESPONSE = Api("openai", "responses", _read)
INPUT_TOKENS = Api("openai", "responses/input_tokens", _read_count, generates=False)


class ResponseRenderer(Renderer):
    """Writes one response; the store has it while its stream runs, and from its end on where it is to be stored."""

    def __init__(self, request: web.Request, model: str, parsed: ParsedResponse) -> None:
        """Take the model as the client calls it, and what the client asked for."""
        self._now = request.app[CONTEXT].now
        self._store, self._owner = request.app[RESPONSES], owner_of(request)
        self._exchange = request[EXCHANGE]
        self._parsed = parsed
        self._events = ResponseEvents(
            new_id("resp"),
            int(self._now()),
            model,
            parsed.repeated,
            parsed.names,
            has_logprobs=parsed.request.logprobs is not None,
            seals_thoughts=parsed.seals_thoughts,
        )

    def event(self, index: int, event: AnswerEvent) -> bytes:  # noqa: ARG002
        """Take an event; the first ones of the stream come when the prompt is admitted."""
        is_new = not self._events.has_begun
        match event:
            case Prefilling():
                data = self._events.begin()
            case Delta():
                data = self._events.take(event)
            case Finished():
                data = self._events.finish(event, int(self._now()))
                self._keep()
            case _:
                return b""
        if is_new and self._events.has_begun and not self._events.has_ended and self._exchange.number is not None:
            begun = orjson.dumps(self._events.body()) if self._parsed.stores else None
            self._store.begin(self._owner, self._events.id, self._exchange.number, begun)
        return data

    def whole(self) -> bytes:
        """Return the response as JSON."""
        return orjson.dumps(self._events.body())

    def fail(self, error: MlxdError) -> bytes:
        """Return `response.failed`."""
        if not self._events.has_begun or self._events.has_ended:
            return b""
        last = self._events.fail(error)
        self._keep()
        return last

    def keep_alive(self) -> bytes:
        """Return the state again."""
        return self._events.keep_alive()

    def close(self) -> None:
        """Keep nothing of a response whose client went away."""
        self._store.end(self._owner, self._events.id, None)

    def _keep(self) -> None:
        """Store the response as it ended, where that is wanted."""
        shown = self._events.body()
        body = orjson.dumps(shown)
        if self._parsed.stores:
            ids = tuple(item["id"] for item in (*self._parsed.input_items, *shown["output"]))
            asked = orjson.dumps(self._parsed.input_items)
            self._store.add(StoredResponse(self._events.id, self._owner, body, asked, self._parsed.previous_id, ids))
        self._store.end(self._owner, self._events.id, body)
