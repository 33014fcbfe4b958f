"""A real upstream server on a loopback socket that speaks both protocols and misbehaves on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.support import said as protocols
from tests.support.said import Said

KEY = "sk-upstream-0123456789"
PIECES = ("Hel", "lo ", "from ", "afar")
# What goes wrong in a stream before there is any content, and in the midst of it.
_EARLY = frozenset({"error_first", "hang_before_content", "die_empty"})
# A stream without an answer in it, which ends in order.
_EMPTY = {
    "only_done": b"data: [DONE]\n\n",
    "no_events": b"data: {not json\n\ndata: null\n\ndata: [DONE]\n\n",
    "no_choices": b'data: {"choices": 5}\n\ndata: {"choices": []}\n\ndata: [DONE]\n\n',
}
_LATE = frozenset({"error_event", "die_after_content", "hang_after_content", "end_after_content"})


@dataclass
class Seen:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Upstream:
    """What the upstream does next, and what it got."""

    url: str = ""  # up to and including /v1
    behaviour: str = "answer"  # answer, refuse, hang, hang_after_content, die, die_after_content, no_done, ...
    status: int = 400
    words: str = "overloaded"  # of an error event
    reply: bytes = b""  # the body of a refusal
    reply_headers: dict[str, str] = field(default_factory=dict)
    # What it answers; messages, which are Anthropic's, have an answer anyway.
    said: Said | None = None
    seen: list[Seen] = field(default_factory=list)
    open_requests: int = 0
    connections: int = 0  # that were accepted
    listener: asyncio.Server | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)  # set from the start; cleared by a test
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # a client left before its answer was whole

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append(Seen(request.path, dict(request.headers), body))
        self.open_requests += 1
        self.arrived.set()
        try:
            return await self._respond(request, json.loads(body) if body else {})
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise
        finally:
            self.open_requests -= 1

    def stop_listening(self) -> None:
        """Refuse every connection from now on."""
        assert self.listener is not None
        self.listener.close()

    def __post_init__(self) -> None:
        self.may_answer.set()

    async def _respond(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await self.may_answer.wait()
        if self.behaviour == "refuse":
            return web.Response(status=self.status, body=self.reply, headers=self.reply_headers)
        if self.behaviour == "hang":
            await asyncio.Event().wait()
        if self.behaviour == "die":
            _cut(request)
        if self.behaviour == "garbage":
            kind = "text/event-stream" if body.get("stream") else "application/json"
            return web.Response(body=b"data: {]\n\n" * 3, content_type=kind)
        if self.behaviour == "die_empty" and not body.get("stream"):
            _cut(request)
        if request.method == "GET":
            return web.json_response({"object": "list", "data": [{"id": "a"}, {"id": "b"}]})
        return await self._lie(request, body)

    async def _lie(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Answer, but for what the behaviour makes of the answer's kind and end."""
        if self.behaviour == "die_in_body":
            kind = "text/event-stream" if body.get("stream") else "application/json"
            response = web.StreamResponse(headers={"Content-Type": kind})
            await response.prepare(request)
            await response.write(b'{"id": "up-1", ')
            _cut(request)
        if self.behaviour in _EMPTY:
            return web.Response(body=_EMPTY[self.behaviour], content_type="text/event-stream")
        if self.behaviour == "other_kind":  # a stream where none was asked for, and none where one was
            body = body | {"stream": not body.get("stream")}
        return await self._answer(request, body)

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if request.path.endswith("/responses"):
            return await self._response(request, body)
        speaks = "anthropic" if request.path.endswith("/messages") else "openai"
        if self.said is not None or speaks == "anthropic":
            return await self._say(request, Said() if self.said is None else self.said, body, speaks=speaks)
        is_chat = request.path.endswith("/chat/completions")
        if not body.get("stream"):
            return web.json_response(_whole(body["model"], is_chat=is_chat))
        return await self._stream(request, body["model"], is_chat=is_chat)

    async def _response(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        whole = _responses_whole(body["model"])
        if not body.get("stream"):
            return web.json_response(whole)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        begun = whole | {"status": "in_progress", "output": []}
        await response.write(_responses_event(0, "response.created", response=begun))
        if self.behaviour == "die_empty":
            _cut(request)
        if self.behaviour == "error_event":
            await response.write(_responses_event(1, "error", code="x", message="overloaded", param=None))
            return response
        item = {**whole["output"][0], "status": "in_progress", "content": []}
        part = {"type": "output_text", "text": "", "annotations": []}
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        await response.write(_responses_event(1, "response.output_item.added", output_index=0, item=item))
        await response.write(_responses_event(2, "response.content_part.added", **place, part=part))
        for number, piece in enumerate(PIECES, 3):
            text = {**place, "delta": piece, "logprobs": []}
            await response.write(_responses_event(number, "response.output_text.delta", **text))
        done = _responses_event(7, "response.output_item.done", output_index=0, item=whole["output"][0])
        await response.write(done + _responses_event(8, "response.completed", response=whole))
        return response

    async def _say(self, request: web.Request, said: Said, body: dict[str, Any], *, speaks: str) -> web.StreamResponse:
        if not body.get("stream"):
            return web.json_response(protocols.whole(said, body["model"], speaks=speaks))
        options = body.get("stream_options") or {}
        include_usage = options.get("include_usage") is True
        before, content, last = protocols.events(said, body["model"], speaks=speaks, include_usage=include_usage)
        if self.behaviour in _EARLY:
            events = before
        elif self.behaviour in _LATE:
            events = [*before, *content[: len(content) // 2 + 1]]
        else:
            events = [*before, *content, *last]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        if self.behaviour.startswith("error"):
            await response.write(protocols.error_event(speaks=speaks))
        if self.behaviour.startswith("die"):
            _cut(request)
        if self.behaviour.startswith("hang"):
            await asyncio.Event().wait()
        return response

    async def _stream(self, request: web.Request, model: str, *, is_chat: bool) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": PROCESSING\n\n")
        if self.behaviour == "hang_before_content":
            await asyncio.Event().wait()
        if self.behaviour == "die_empty":  # a role, and nothing after it
            await response.write(_event(model, "", is_chat=is_chat))
            _cut(request)
        for number, piece in enumerate(PIECES):
            event = _event(model, piece, is_chat=is_chat)
            # Cut in two, to be put together again.
            await response.write(event[:20])
            if number == 2 and self.behaviour in {"die_after_content", "hang_after_content", "end_after_content"}:
                if self.behaviour == "die_after_content":
                    _cut(request)
                if self.behaviour == "hang_after_content":
                    await asyncio.Event().wait()
                return response
            await response.write(event[20:])
        if self.behaviour == "error_event":
            await response.write(b'data: {"error":{"message":"%b","code":"x"}}\n\n' % self.words.encode())
        else:
            await response.write(b"data: [DONE]\n\n")
        if self.behaviour == "open_after_end":
            await asyncio.Event().wait()
        return response


def _cut(request: web.Request) -> None:
    """Break the connection, as a crash does."""
    assert request.transport is not None
    request.transport.abort()
    raise ConnectionResetError


def _whole(model: str, *, is_chat: bool) -> dict[str, Any]:
    text = "".join(PIECES)
    answer = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text, "logprobs": None}
    return {
        "id": "up-1",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 5,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", **answer}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
        "odd_field": {"kept": True},
    }


def _responses_whole(model: str) -> dict[str, Any]:
    text = {"type": "output_text", "text": "".join(PIECES), "annotations": []}
    return {
        "id": "resp_up",
        "object": "response",
        "created_at": 5,
        "model": model,
        "status": "completed",
        "error": None,
        "output": [{"id": "msg_up", "type": "message", "role": "assistant", "status": "completed", "content": [text]}],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 5,
        },
    }


def _responses_event(number: int, kind: str, **data: Any) -> bytes:
    event = {"type": kind, "sequence_number": number, **data}
    return f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode()


def _event(model: str, piece: str, *, is_chat: bool) -> bytes:
    choice = {"delta": {"content": piece}} if is_chat else {"text": piece}
    body = {
        "id": "up-1",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": 5,
        "model": model,
        "choices": [{"index": 0, "finish_reason": None, **choice}],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """Run an upstream until the end of the context."""
    server = Upstream()
    app = web.Application()
    app.router.add_route("*", "/v1/{path:.*}", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()

    def accept() -> asyncio.BaseProtocol:
        server.connections += 1
        assert runner.server is not None
        return runner.server()

    server.listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{server.listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        server.listener.close()
        await runner.cleanup()
