"""POST /v1/chat/completions: the route, and the renderer of its answers."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from mlxd.engine.base import AnswerEvent, Delta, Finished, FinishReason, Prefilling, TextKind, ThoughtSigned
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.tool import CallPiece
from mlxd.http.dispatch import Api, Asked, answer
from mlxd.openai.chunk import FUNCTION_TOOLS, CallShape, Chunks, usage_body
from mlxd.openai.logprob import chat_logprobs
from mlxd.openai.schema import parse_chat
from mlxd.openai.tool import custom_input
from mlxd.renderer import Job, Renderer


async def post_chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a chat, streamed or whole, here or by an upstream."""
    return await answer(request, CHAT)


def _read(asked: Asked) -> Job:
    parsed = parse_chat(asked.body, asked.noise, asked.omitted)
    renderer = ChatRenderer(
        f"chatcmpl-{asked.id}",
        asked.now_s,
        asked.model.asked,
        include_usage=parsed.include_usage,
        n=parsed.n,
        shape=parsed.calls,
        has_logprobs=parsed.requests[0].logprobs is not None,
    )
    return Job(renderer, parsed.requests, parsed.n)


def _relayed(body: Mapping[str, Any], model: str, now_s: int) -> Callable[[str], Renderer]:
    options = body.get("stream_options")
    include_usage = isinstance(options, dict) and options.get("include_usage") is True
    return lambda answer_id: ChatRenderer(answer_id, now_s, model, include_usage=include_usage, is_ours=False)


CHAT = Api("openai", "chat/completions", _read, _relayed)


class ChatRenderer(Renderer):
    """Writes the choices of one chat."""

    def __init__(
        self,
        answer_id: str,
        created_s: int,
        model: str,
        *,
        include_usage: bool,
        n: int = 1,
        shape: CallShape = FUNCTION_TOOLS,
        has_logprobs: bool = False,
        is_ours: bool = True,
    ) -> None:
        """Take what every answer and every chunk begins with, and what the client asked for."""
        kinds = ("chat.completion", "chat.completion.chunk")
        self._chunks = Chunks(answer_id, *kinds, created_s, model, include_usage=include_usage, is_ours=is_ours)
        self._has_logprobs = has_logprobs
        self._choices = [_Choice(index, self._chunks, shape) for index in range(n)]

    def event(self, index: int, event: AnswerEvent) -> bytes:
        """Take an event of one choice; the role comes when its prompt is admitted."""
        choice = self._choices[index]
        match event:
            case Prefilling():
                return choice.begin()
            case Delta():
                return choice.begin() + choice.take(event)
            case ThoughtSigned():
                return choice.sign(event.block)
            case Finished():
                return choice.begin() + choice.finish(event)
        return b""

    def end(self) -> bytes:
        """Return the usage, where it is wanted, and [DONE]."""
        return self._chunks.end(self._usage())

    def whole(self) -> bytes:
        """Return the answer as JSON."""
        choices = [choice.whole(has_logprobs=self._has_logprobs) for choice in self._choices]
        return orjson.dumps(self._chunks.members | {"choices": choices, "usage": self._usage()})

    def _usage(self) -> dict[str, Any]:
        ends = [choice.finished for choice in self._choices if choice.finished is not None]
        return usage_body(ends, len(self._choices), sum(choice.reasoning_tokens for choice in self._choices))


@dataclass(slots=True)
class _Call:
    """A call as it grows, with what clients know it by."""

    index: int
    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """What has been written of its arguments."""
        return "".join(self.pieces)


class _Choice:
    """One choice as it grows: text, reasoning, calls with their ids, logprobs; and its chunks."""

    def __init__(self, index: int, chunks: Chunks, shape: CallShape) -> None:
        """Format all that does not change from chunk to chunk."""
        self.finished: Finished | None = None
        self.reasoning_tokens = 0
        self._index = index
        self._shape = shape
        self._pieces: dict[TextKind, list[str]] = {}
        self._calls: list[_Call] = []
        self._thoughts: list[Mapping[str, Any]] = []  # as an upstream has signed them
        self._logprobs: list[TokenLogprob] = []  # of the content's tokens
        self._tokens = 0
        self._has_begun = False
        self._open_custom: _Call | None = None  # its input is told when all of it is there
        self._tail = chunks.tail
        self._unfinished = b',"finish_reason":null}' + chunks.tail
        self._start = chunks.head + b'{"index":%d,"delta":{' % index
        self._starts = {
            TextKind.CONTENT: self._start + b'"content":',
            TextKind.REASONING: self._start + b'"reasoning_content":',
        }
        self._end = b'},"logprobs":null' + self._unfinished

    def begin(self) -> bytes:
        """Return the first chunk, unless it has been."""
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._start + b'"role":"assistant","content":"","refusal":null' + self._end

    def take(self, delta: Delta) -> bytes:
        """Add *delta*; return chunks with its text and what the model thought of its tokens, or with its calls."""
        if delta.kind is TextKind.REASONING:
            self.reasoning_tokens += delta.completion_tokens - self._tokens
        self._tokens = delta.completion_tokens
        if delta.kind is TextKind.TOOL:
            return b"".join(self._call(piece) for piece in delta.calls)
        self._pieces.setdefault(delta.kind, []).append(delta.text)
        text = self._starts[delta.kind] + orjson.dumps(delta.text)
        if delta.kind is not TextKind.CONTENT or not delta.logprobs:
            return text + self._end
        self._logprobs += delta.logprobs
        return text + b'},"logprobs":' + orjson.dumps(chat_logprobs(delta.logprobs)) + self._unfinished

    def sign(self, block: Mapping[str, Any]) -> bytes:
        """Add a thought that an upstream has signed; return its chunk."""
        self._thoughts.append(block)
        thought = {"index": len(self._thoughts) - 1, **block}
        return self._start + b'"thinking_blocks":[' + orjson.dumps(thought) + b"]" + self._end

    def finish(self, finished: Finished) -> bytes:
        """End the choice; return the chunk with the finish reason."""
        self.finished = finished
        end = self._start + b'},"logprobs":null,"finish_reason":' + orjson.dumps(self._finish_reason) + b"}"
        return self._close_custom() + end + self._tail

    def whole(self, *, has_logprobs: bool) -> dict[str, Any]:
        """Return the choice as a whole answer has it; its message has no content where it is calls alone."""
        content = "".join(self._pieces.get(TextKind.CONTENT, ()))
        said = content or (None if self._calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
        reasoning = "".join(self._pieces.get(TextKind.REASONING, ()))
        if reasoning:
            message["reasoning_content"] = reasoning
        if self._thoughts:
            message["thinking_blocks"] = self._thoughts
        return {
            "index": self._index,
            "message": message | self._whole_calls(),
            "logprobs": chat_logprobs(self._logprobs) if has_logprobs else None,
            "finish_reason": self._finish_reason,
        }

    @property
    def _finish_reason(self) -> str:
        """OpenAI's word for the end; an answer that was cut off while it called is cut off."""
        if self.finished is None:
            raise RuntimeError("the answer goes on")
        if self._calls and self.finished.reason is FinishReason.STOP:
            return "function_call" if self._shape.uses_functions else "tool_calls"
        return self.finished.reason.value

    def _call(self, piece: CallPiece) -> bytes:
        """Return the chunks of a piece of a call: who is called, where it is the first, and with what."""
        if piece.name is not None:
            self._calls.append(_Call(len(self._calls), piece.id or f"call_{uuid.uuid4().hex[:24]}", piece.name))
        call = self._calls[-1]
        call.pieces.append(piece.arguments)
        if self._shape.uses_functions:
            part = {"arguments": piece.arguments}
            if piece.name is not None:
                part = {"name": call.name, **part}
            return self._start + b'"function_call":' + orjson.dumps(part) + self._end
        data = b""
        if call.name in self._shape.custom:
            if piece.name is not None:
                self._open_custom = call
                data = self._call_chunk(call, id=call.id, type="custom", custom={"name": call.name, "input": ""})
            return data + (self._close_custom() if piece.is_last else b"")
        if piece.name is not None:
            function = {"name": call.name, "arguments": ""}
            data = self._call_chunk(call, id=call.id, type="function", function=function)
        if piece.arguments:
            data += self._call_chunk(call, function={"arguments": piece.arguments})
        return data

    def _close_custom(self) -> bytes:
        call, self._open_custom = self._open_custom, None
        return b"" if call is None else self._call_chunk(call, custom={"input": custom_input(call.arguments)})

    def _call_chunk(self, call: _Call, **members: Any) -> bytes:
        part: Mapping[str, Any] = {"index": call.index, **members}
        return self._start + b'"tool_calls":[' + orjson.dumps(part) + b"]" + self._end

    def _whole_calls(self) -> dict[str, Any]:
        """Return the member of the message that holds its calls; none where there are none."""
        if not self._calls:
            return {}
        if self._shape.uses_functions:
            return {"function_call": {"name": self._calls[0].name, "arguments": self._calls[0].arguments}}
        return {"tool_calls": [self._whole_call(call) for call in self._calls]}

    def _whole_call(self, call: _Call) -> dict[str, Any]:
        if call.name in self._shape.custom:
            custom = {"name": call.name, "input": custom_input(call.arguments)}
            return {"id": call.id, "type": "custom", "custom": custom}
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
