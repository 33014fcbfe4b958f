"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from mlxd.anthropic.event import Blocks, event, message, stop_reason, usage_body
from mlxd.anthropic.schema import ParsedBody, parse_count_body, parse_message_body
from mlxd.engine.base import Delta, Finished, Prefilling, Usage
from mlxd.http.context import EXCHANGE
from mlxd.http.generation import AnswerEvent, generation
from mlxd.http.route import Local, admit
from mlxd.http.stream import EventStream


async def post_messages(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, streamed or whole."""
    admitted = await admit(request, "messages")
    if not isinstance(admitted, Local):
        return admitted
    parsed = parse_message_body(admitted.body, reject_unknown=admitted.reject_unknown)
    request[EXCHANGE].ignored = parsed.ignored
    return await (_stream if parsed.stream else _answer)(request, admitted.model, parsed)


async def post_count_tokens(request: web.Request) -> web.StreamResponse:
    """Say how many tokens a conversation is for the model, which is loaded for it."""
    admitted = await admit(request, "messages/count_tokens", answers=False)
    if not isinstance(admitted, Local):
        return admitted
    parsed = parse_count_body(admitted.body, reject_unknown=admitted.reject_unknown)
    request[EXCHANGE].ignored = parsed.ignored
    async with generation(request, admitted.model) as held:
        prompt = await held.lease.prepare(parsed.request)
    return _json({"input_tokens": len(prompt.tokens)})


async def _stream(request: web.Request, model: str, parsed: ParsedBody) -> web.StreamResponse:
    blocks = Blocks()
    is_open = False

    async def write(_: int, happened: AnswerEvent) -> None:
        nonlocal is_open
        match happened:
            case Prefilling() if not is_open:
                is_open = True
                # The first one says what the prompt cache had.
                begun = Usage(happened.total, happened.done, 0)
                await stream.send(event("message_start", message=message(_id(request), model, usage_body(begun))))
            case Delta():
                data = blocks.take(happened)
                if data:
                    await stream.send(data)
            case Finished():
                ended = {
                    "stop_reason": stop_reason(happened, has_called=blocks.has_called),
                    "stop_sequence": happened.stop,
                }
                usage = usage_body(happened.usage, blocks.thinking_tokens)
                last = event("message_delta", delta=ended, usage=usage) + event("message_stop")
                await stream.send(blocks.close() + last)

    async with EventStream(request) as stream, generation(request, model) as held:
        await held.deliver([parsed.request], 1, write)
    return stream.response


async def _answer(request: web.Request, model: str, parsed: ParsedBody) -> web.Response:
    blocks = Blocks()

    async def keep(_: int, happened: AnswerEvent) -> None:
        if isinstance(happened, Delta):
            blocks.take(happened)

    async with generation(request, model) as held:
        (finished,) = await held.deliver([parsed.request], 1, keep)
    body = message(_id(request), model, usage_body(finished.usage, blocks.thinking_tokens))
    body["content"] = blocks.blocks
    body["stop_reason"] = stop_reason(finished, has_called=blocks.has_called)
    body["stop_sequence"] = finished.stop
    return _json(body)


def _id(request: web.Request) -> str:
    return f"msg_{request[EXCHANGE].request_id}"


def _json(body: dict[str, Any]) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
