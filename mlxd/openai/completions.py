"""POST /v1/completions: texts or tokens that no template touches; the prompts of a list are answered side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from mlxd.engine.base import Delta, Finished, FinishReason, GenerationRequest, Prefilling, PromptScored, TextPrompt
from mlxd.engine.logprob import TokenLogprob
from mlxd.http.context import CONTEXT, EXCHANGE
from mlxd.http.dispatch import Local, Surface, dispatch
from mlxd.http.generation import AnswerEvent, generation
from mlxd.openai import chunk
from mlxd.openai.logprob import completion_logprobs
from mlxd.openai.schema import ParsedBody, parse_completion


async def post_completions(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts, streamed or whole, here or by an upstream."""
    return await dispatch(request, COMPLETIONS)


async def _complete(request: web.Request, local: Local) -> web.StreamResponse:
    parsed = parse_completion(local.take_body(), local.omitted)
    if parsed.stream:
        return await _stream(request, local, parsed)
    return await _answer(request, local.model, parsed)


COMPLETIONS = Surface("openai", "completions", _complete)


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a choice's text and the logprobs of its tokens."""

    text: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(slots=True)
class _Choice:
    """One choice as it grows: the prompt, where it is echoed, and its continuation, where one is wanted."""

    request: GenerationRequest
    echo: bool
    answers: bool  # False for max_tokens 0: the prompt alone is asked for
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    length: int = 0
    finished: Finished | None = None

    def begin(self) -> _Part | None:
        """Return the echo of a prompt whose text is known and whose logprobs are not wanted."""
        if self.echo and not self.request.scores_prompt and isinstance(self.request.prompt, TextPrompt):
            return self._add(_Part(self.request.prompt.text, ()))
        return None

    def take(self, event: AnswerEvent) -> _Part | None:
        """Return what *event* adds."""
        if isinstance(event, PromptScored):
            return self._add(_echo(self.request, event.logprobs))
        if isinstance(event, Delta) and self.answers:
            return self._add(_Part(event.text, event.logprobs))
        if isinstance(event, Finished):
            self.finished = event
        return None

    def shown_logprobs(self, part: _Part) -> dict[str, Any] | None:
        """Return the logprobs of the part that was added last; None where they are not wanted."""
        if self.request.logprobs is None:
            return None
        return completion_logprobs(part.logprobs, self.length - len(part.text))

    def _add(self, part: _Part) -> _Part:
        self.text.append(part.text)
        self.logprobs += part.logprobs
        self.length += len(part.text)
        return part

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for the end; nothing but the prompt is an answer of length 0."""
        if self.finished is None:
            raise RuntimeError("the answer goes on")
        return (self.finished.reason if self.answers else FinishReason.LENGTH).value


def _echo(request: GenerationRequest, logprobs: tuple[TokenLogprob, ...]) -> _Part:
    """Return the prompt as text; a token that the tokenizer put before it is none of the client's."""
    if isinstance(request.prompt, TextPrompt):
        if not request.prompt.text.encode().startswith(logprobs[0].raw):
            logprobs = logprobs[1:]
        return _Part(request.prompt.text, logprobs)
    return _Part(b"".join(entry.raw for entry in logprobs).decode(errors="replace"), logprobs)


def _choices(parsed: ParsedBody) -> list[_Choice]:
    return [
        _Choice(request, parsed.echo, answers=not parsed.echoes_only)
        for request in parsed.requests
        for _ in range(parsed.n)
    ]


def _members(request: web.Request, model: str) -> dict[str, Any]:
    answer_id = f"cmpl-{request[EXCHANGE].request_id}"
    return chunk.header(answer_id, "text_completion", int(request.app[CONTEXT].now()), model)


def _usage(ends: list[Finished], parsed: ParsedBody) -> dict[str, Any]:
    usage = chunk.usage_body(ends, parsed.n)
    if parsed.echoes_only:
        usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
    return usage


async def _stream(request: web.Request, local: Local, parsed: ParsedBody) -> web.StreamResponse:
    stream = local.stream
    chunks = chunk.CompletionChunks(_members(request, local.model), include_usage=parsed.include_usage)
    choices = _choices(parsed)

    async def write(index: int, event: AnswerEvent) -> None:
        choice = choices[index]
        if isinstance(event, Prefilling):
            return
        parts = [choice.begin() if not choice.text else None, choice.take(event)]
        data = b"".join(
            chunks.text(index, part.text, choice.shown_logprobs(part)) for part in parts if part is not None
        )
        if isinstance(event, Finished):
            data += chunks.finish(index, choice.finish_reason)
        if data:
            await stream.send(data)

    async with generation(request, local.model) as held:
        ends = await held.deliver(parsed.requests, parsed.n, write)
        await stream.send((chunks.usage(_usage(ends, parsed)) if parsed.include_usage else b"") + chunk.DONE)
    return stream.response


async def _answer(request: web.Request, model: str, parsed: ParsedBody) -> web.Response:
    choices = _choices(parsed)
    for choice in choices:
        choice.begin()

    async def keep(index: int, event: AnswerEvent) -> None:
        choices[index].take(event)

    async with generation(request, model) as held:
        ends = await held.deliver(parsed.requests, parsed.n, keep)
    body = _members(request, model)
    body["choices"] = [
        {
            "index": index,
            "text": "".join(choice.text),
            "logprobs": None if choice.request.logprobs is None else completion_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(choices)
    ]
    body["usage"] = _usage(ends, parsed)
    return web.Response(body=orjson.dumps(body), content_type="application/json")
