"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from mlxd.engine.base import TextKind
from mlxd.openai import chunk
from mlxd.openai.context import CONTEXT, EXCHANGE
from mlxd.openai.generation import generation
from mlxd.openai.route import Local, admit
from mlxd.openai.schema import ParsedBody, parse_chat
from mlxd.openai.stream import EventStream


async def post_chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a chat, streamed or whole, here or by an upstream."""
    admitted = await admit(request, "chat/completions")
    if not isinstance(admitted, Local):
        return admitted
    parsed = parse_chat(admitted.body, reject_unknown=admitted.reject_unknown)
    request[EXCHANGE].ignored = parsed.ignored
    return await (_stream if parsed.stream else _answer)(request, admitted.model, parsed)


def _members(request: web.Request, kind: str, model: str) -> dict[str, Any]:
    answer_id = f"chatcmpl-{request[EXCHANGE].request_id}"
    return chunk.header(answer_id, kind, int(request.app[CONTEXT].now()), model)


async def _stream(request: web.Request, model: str, parsed: ParsedBody) -> web.StreamResponse:
    chunks = chunk.ChatChunks(_members(request, "chat.completion.chunk", model), include_usage=parsed.include_usage)
    lead = chunks.role()

    async def write(kind: TextKind, text: str) -> None:
        nonlocal lead
        data, lead = lead + chunks.text(kind, text), b""
        await stream.send(data)

    async with EventStream(request) as stream, generation(request, model) as held:
        finished = await held.deliver(parsed.requests[0], write)
        usage = chunks.usage((finished.usage,)) if parsed.include_usage else b""
        await stream.send(lead + chunks.finish(finished.reason) + usage + chunk.DONE)
    return stream.response


async def _answer(request: web.Request, model: str, parsed: ParsedBody) -> web.Response:
    async with generation(request, model) as held:
        answer = await held.collect(parsed.requests[0])
    # Tool text stays visible as content for as long as tool calls are not parsed, as in the stream.
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.text(TextKind.CONTENT, TextKind.TOOL),
        "refusal": None,
    }
    reasoning = answer.text(TextKind.REASONING)
    if reasoning:
        message["reasoning_content"] = reasoning
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.reason.value}
    body = _members(request, "chat.completion", model)
    body |= {"choices": [choice], "usage": chunk.usage_body((answer.usage,))}
    return web.Response(body=orjson.dumps(body), content_type="application/json")
