"""POST /v1/messages and /v1/messages/count_tokens: the routes, and the renderer of a message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web

from mlxd.anthropic.event import Blocks, event, message, stop_reason, usage_body
from mlxd.anthropic.schema import parse_count_body, parse_message_body
from mlxd.engine.base import AnswerEvent, Delta, Finished, FinishReason, Prefilling, Usage
from mlxd.http.dispatch import Api, Asked, answer
from mlxd.renderer import CountRenderer, Job, Renderer

# What the engine calls as chats do.
_FIELDS = {"reasoning_effort": "output_config.effort"}


async def post_messages(request: web.Request) -> web.StreamResponse:
    """Answer a conversation, streamed or whole, here or by an upstream."""
    return await answer(request, MESSAGES)


async def post_count_tokens(request: web.Request) -> web.StreamResponse:
    """Say how many tokens a conversation is for the model, which is loaded for it."""
    return await answer(request, COUNT_TOKENS)


def _read(asked: Asked) -> Job:
    parsed = parse_message_body(asked.body, asked.noise, asked.omitted)
    renderer = MessageRenderer(
        f"msg_{asked.id}", asked.model.asked, answers=parsed.answers, hides_thoughts=parsed.hides_thoughts
    )
    return Job(renderer, [parsed.request], fields=_FIELDS)


def _read_count(asked: Asked) -> Job:
    parsed = parse_count_body(asked.body, asked.noise, asked.omitted)
    return Job(CountRenderer(), [parsed.request], only_counts=True, fields=_FIELDS)


def _relayed(body: Mapping[str, Any], model: str, now_s: int) -> Callable[[str], Renderer]:  # noqa: ARG001
    return lambda message_id: MessageRenderer(message_id, model)


MESSAGES = Api("anthropic", "messages", _read, _relayed, keep_alive=event("ping"))
COUNT_TOKENS = Api("anthropic", "messages/count_tokens", _read_count, generates=False)


class MessageRenderer(Renderer):
    """Writes one message."""

    def __init__(self, message_id: str, model: str, *, answers: bool = True, hides_thoughts: bool = False) -> None:
        """Take the model as the client calls it, and what the client asked for."""
        self._id = message_id
        self._model = model
        self._answers = answers
        self._blocks = Blocks(hides_thoughts)
        self._has_begun = False
        self._finished: Finished | None = None

    def event(self, index: int, happened: AnswerEvent) -> bytes:  # noqa: ARG002
        """Take an event; the first one of the stream comes when the prompt is admitted."""
        match happened:
            case Prefilling() if not self._has_begun:
                self._has_begun = True
                # The first one says what the prompt cache had.
                begun = usage_body(Usage(happened.total, happened.done, 0))
                return event("message_start", message=message(self._id, self._model, begun))
            case Delta() if self._answers:
                return self._blocks.take(happened)
            case Finished():
                finished = self._finished = happened if self._answers else _unsaid(happened)
                ended = {
                    "stop_reason": stop_reason(finished, has_called=self._blocks.has_called),
                    "stop_sequence": finished.stop,
                }
                usage = usage_body(finished.usage, self._blocks.thinking_tokens)
                last = event("message_delta", delta=ended, usage=usage) + event("message_stop")
                return self._blocks.close() + last
        return b""

    def whole(self) -> bytes:
        """Return the message as JSON."""
        if self._finished is None:
            raise RuntimeError("the answer goes on")
        body = message(self._id, self._model, usage_body(self._finished.usage, self._blocks.thinking_tokens))
        body["content"] = self._blocks.blocks
        body["stop_reason"] = stop_reason(self._finished, has_called=self._blocks.has_called)
        body["stop_sequence"] = self._finished.stop
        return orjson.dumps(body)


def _unsaid(finished: Finished) -> Finished:
    """Return the end of an answer that nobody has asked for: an engine makes at least one token."""
    usage = replace(finished.usage, completion_tokens=0)
    return replace(finished, reason=FinishReason.LENGTH, stop=None, usage=usage)
