"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from mlxd.engine.base import Delta, Finished, Prefilling, TextKind
from mlxd.http.answer import ChatAnswer
from mlxd.http.context import CONTEXT, EXCHANGE
from mlxd.http.dispatch import Local, Surface, dispatch
from mlxd.http.generation import AnswerEvent, generation
from mlxd.openai import chunk
from mlxd.openai.logprob import chat_logprobs
from mlxd.openai.schema import ParsedBody, parse_chat


async def post_chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a chat, streamed or whole, here or by an upstream."""
    return await dispatch(request, CHAT)


async def _chat(request: web.Request, local: Local) -> web.StreamResponse:
    parsed = parse_chat(local.take_body(), local.noise, local.omitted)
    if parsed.stream:
        return await _stream(request, local, parsed)
    return await _answer(request, local.model, parsed)


CHAT = Surface("openai", "chat/completions", _chat)


def _members(request: web.Request, kind: str, model: str) -> dict[str, Any]:
    answer_id = f"chatcmpl-{request[EXCHANGE].request_id}"
    return chunk.header(answer_id, kind, int(request.app[CONTEXT].now()), model)


async def _stream(request: web.Request, local: Local, parsed: ParsedBody) -> web.StreamResponse:
    stream = local.stream
    members = _members(request, "chat.completion.chunk", local.model)
    choices = [
        chunk.ChatChunks(members, index, include_usage=parsed.include_usage, calls=parsed.calls)
        for index in range(parsed.n)
    ]
    answers = [ChatAnswer() for _ in choices]
    leads = [choice.role() for choice in choices]

    async def write(index: int, event: AnswerEvent) -> None:
        # Until the first content the cloud may answer instead.
        if not isinstance(event, Delta | Finished) and not (isinstance(event, Prefilling) and local.is_last):
            return
        answer, chunks = answers[index], choices[index]
        data, leads[index] = leads[index], b""
        if isinstance(event, Delta):
            calls = b"".join(chunks.call(call, piece) for call, piece in answer.take(event))
            if event.kind is TextKind.TOOL:
                data += calls
            else:
                logprobs = event.logprobs if event.kind is TextKind.CONTENT else ()
                data += chunks.text(event.kind, event.text, logprobs)
        elif isinstance(event, Finished):
            answer.finished = event
            data += chunks.finish(_finish_reason(parsed, answer))
        if data:
            await stream.send(data)

    async with generation(request, local.model) as held:
        ends = await held.deliver(parsed.requests, parsed.n, write)
        usage = chunk.usage_body(ends, parsed.n, sum(answer.reasoning_tokens for answer in answers))
        await stream.send((choices[0].usage(usage) if parsed.include_usage else b"") + chunk.DONE)
    return stream.response


async def _answer(request: web.Request, model: str, parsed: ParsedBody) -> web.Response:
    answers = [ChatAnswer() for _ in range(parsed.n)]

    async def keep(index: int, event: AnswerEvent) -> None:
        if isinstance(event, Delta):
            answers[index].take(event)
        elif isinstance(event, Finished):
            answers[index].finished = event

    async with generation(request, model) as held:
        ends = await held.deliver(parsed.requests, parsed.n, keep)
    body = _members(request, "chat.completion", model)
    body["choices"] = [_choice(parsed, index, answer) for index, answer in enumerate(answers)]
    body["usage"] = chunk.usage_body(ends, parsed.n, sum(answer.reasoning_tokens for answer in answers))
    return web.Response(body=orjson.dumps(body), content_type="application/json")


def _choice(parsed: ParsedBody, index: int, answer: ChatAnswer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    reasoning = answer.text(TextKind.REASONING)
    if reasoning:
        message["reasoning_content"] = reasoning
    message |= chunk.call_members(answer.calls, parsed.calls)
    wants_logprobs = parsed.requests[0].logprobs is not None
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(answer.logprobs) if wants_logprobs else None,
        "finish_reason": _finish_reason(parsed, answer),
    }


def _finish_reason(parsed: ParsedBody, answer: ChatAnswer) -> str:
    reason = answer.finish_reason
    return "function_call" if parsed.calls.uses_functions and reason == "tool_calls" else reason
