"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web

from mlxd.anthropic.event import Blocks, event, message, stop_reason, usage_body
from mlxd.anthropic.schema import ParsedBody, parse_count_body, parse_message_body
from mlxd.engine.base import Delta, Finished, FinishReason, Prefilling, Usage
from mlxd.http.context import EXCHANGE
from mlxd.http.dispatch import Local, Surface, dispatch
from mlxd.http.generation import AnswerEvent, generation

# What the engine calls as chats do.
_FIELDS = {"reasoning_effort": "output_config.effort"}


async def post_messages(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, streamed or whole, here or by an upstream."""
    return await dispatch(request, MESSAGES)


async def post_count_tokens(request: web.Request) -> web.StreamResponse:
    """Say how many tokens a conversation is for the model, which is loaded for it."""
    return await dispatch(request, COUNT_TOKENS)


async def _message(request: web.Request, local: Local) -> web.StreamResponse:
    parsed = parse_message_body(local.take_body(), local.noise, local.omitted)
    if parsed.stream:
        return await _stream(request, local, parsed)
    return await _answer(request, local.model, parsed)


async def _count(request: web.Request, local: Local) -> web.StreamResponse:
    parsed = parse_count_body(local.take_body(), local.noise, local.omitted)
    async with generation(request, local.model, _FIELDS) as held:
        tokens = await held.count(parsed.request)
    return _json({"input_tokens": tokens})


MESSAGES = Surface("anthropic", "messages", _message, keep_alive=event("ping"))
COUNT_TOKENS = Surface("anthropic", "messages/count_tokens", _count, samples=False)


async def _stream(request: web.Request, local: Local, parsed: ParsedBody) -> web.StreamResponse:
    blocks = Blocks(parsed.hides_thoughts)
    lead = b""  # held back until there is something to say where the cloud may answer instead until then

    async def write(_: int, happened: AnswerEvent) -> None:
        nonlocal lead
        match happened:
            case Prefilling() if not lead and not local.stream.has_content:
                # The first one says what the prompt cache had.
                begun = Usage(happened.total, happened.done, 0)
                lead = event("message_start", message=message(_id(request), local.model, usage_body(begun)))
                if local.is_last:
                    data, lead = lead, b""
                    await local.stream.send(data)
            case Delta() if parsed.answers:
                data = blocks.take(happened)
                if data:
                    data, lead = lead + data, b""
                    await local.stream.send(data)
            case Finished():
                happened = happened if parsed.answers else _unsaid(happened)
                ended = {
                    "stop_reason": stop_reason(happened, has_called=blocks.has_called),
                    "stop_sequence": happened.stop,
                }
                usage = usage_body(happened.usage, blocks.thinking_tokens)
                last = event("message_delta", delta=ended, usage=usage) + event("message_stop")
                await local.stream.send(lead + blocks.close() + last)

    async with generation(request, local.model, _FIELDS) as held:
        await held.deliver([parsed.request], 1, write)
    return local.stream.response


async def _answer(request: web.Request, model: str, parsed: ParsedBody) -> web.Response:
    blocks = Blocks(parsed.hides_thoughts)

    async def keep(_: int, happened: AnswerEvent) -> None:
        if isinstance(happened, Delta) and parsed.answers:
            blocks.take(happened)

    async with generation(request, model, _FIELDS) as held:
        (finished,) = await held.deliver([parsed.request], 1, keep)
    finished = finished if parsed.answers else _unsaid(finished)
    blocks.close()
    body = message(_id(request), model, usage_body(finished.usage, blocks.thinking_tokens))
    body["content"] = blocks.blocks
    body["stop_reason"] = stop_reason(finished, has_called=blocks.has_called)
    body["stop_sequence"] = finished.stop
    return _json(body)


def _unsaid(finished: Finished) -> Finished:
    """Return the end of an answer that nobody has asked for: an engine makes at least one token."""
    usage = replace(finished.usage, completion_tokens=0)
    return replace(finished, reason=FinishReason.LENGTH, stop=None, usage=usage)


def _id(request: web.Request) -> str:
    return f"msg_{request[EXCHANGE].request_id}"


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
