"""POST /v1/completions: texts or tokens that no template touches; the prompts of a list are answered side by side."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from mlxd.engine.base import GenerationRequest, TextKind, Usage
from mlxd.openai import chunk
from mlxd.openai.context import CONTEXT, EXCHANGE
from mlxd.openai.generation import generation, together
from mlxd.openai.route import Local, admit
from mlxd.openai.schema import ParsedBody, parse_completion
from mlxd.openai.stream import EventStream


async def post_completions(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts, streamed or whole, here or by an upstream."""
    admitted = await admit(request, "completions")
    if not isinstance(admitted, Local):
        return admitted
    parsed = parse_completion(admitted.body, reject_unknown=admitted.reject_unknown)
    request[EXCHANGE].ignored = parsed.ignored
    return await (_stream if parsed.stream else _answer)(request, admitted.model, parsed)


def _members(request: web.Request, model: str) -> dict[str, Any]:
    answer_id = f"cmpl-{request[EXCHANGE].request_id}"
    return chunk.header(answer_id, "text_completion", int(request.app[CONTEXT].now()), model)


async def _stream(request: web.Request, model: str, parsed: ParsedBody) -> web.StreamResponse:
    chunks = chunk.CompletionChunks(_members(request, model), include_usage=parsed.include_usage)

    async def one(index: int, prompt: GenerationRequest) -> Usage:
        async def write(_kind: TextKind, text: str) -> None:
            await stream.send(chunks.text(index, text))

        finished = await held.deliver(prompt, write)
        await stream.send(chunks.finish(index, finished.reason))
        return finished.usage

    async with EventStream(request) as stream, generation(request, model) as held:
        usages = await together(one(index, prompt) for index, prompt in enumerate(parsed.requests))
        usage = chunks.usage(tuple(usages)) if parsed.include_usage else b""
        await stream.send(usage + chunk.DONE)
    return stream.response


async def _answer(request: web.Request, model: str, parsed: ParsedBody) -> web.Response:
    async with generation(request, model) as held:
        answers = await together(held.collect(prompt) for prompt in parsed.requests)
    choices = [
        {"index": index, "text": answer.text(*TextKind), "logprobs": None, "finish_reason": answer.reason.value}
        for index, answer in enumerate(answers)
    ]
    body = _members(request, model)
    body |= {"choices": choices, "usage": chunk.usage_body(tuple(answer.usage for answer in answers))}
    return web.Response(body=orjson.dumps(body), content_type="application/json")
