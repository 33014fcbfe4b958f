"""POST /v1/completions: texts or tokens that no template touches; the prompts of a list are answered side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from mlxd.engine.base import (
    AnswerEvent,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Prefilling,
    PromptScored,
    TextPrompt,
)
from mlxd.engine.logprob import TokenLogprob
from mlxd.http.dispatch import Api, Asked, answer
from mlxd.openai.chunk import Chunks, usage_body
from mlxd.openai.logprob import completion_logprobs
from mlxd.openai.schema import ParsedBody, parse_completion
from mlxd.renderer import Job, Renderer


async def post_completions(request: web.Request) -> web.StreamResponse:
    """Continue one or more prompts, streamed or whole, here or by an upstream."""
    return await answer(request, COMPLETIONS)


def _read(asked: Asked) -> Job:
    parsed = parse_completion(asked.body, asked.omitted)
    renderer = CompletionRenderer(f"cmpl-{asked.id}", asked.now_s, asked.model.asked, parsed)
    return Job(renderer, parsed.requests, parsed.n)


COMPLETIONS = Api("openai", "completions", _read)


class CompletionRenderer(Renderer):
    """Writes the choices of one completion; the text of each is the text of all kinds."""

    def __init__(self, answer_id: str, created_s: int, model: str, parsed: ParsedBody) -> None:
        """Take what every answer and every chunk begins with, and what the client asked for."""
        kinds = ("text_completion", "text_completion")
        self._chunks = Chunks(answer_id, *kinds, created_s, model, include_usage=parsed.include_usage)
        self._parsed = parsed
        self._choices = [
            _Choice(request, parsed.echo, answers=not parsed.echoes_only)
            for request in parsed.requests
            for _ in range(parsed.n)
        ]

    def event(self, index: int, event: AnswerEvent) -> bytes:
        """Take an event of one choice; its first chunk is the prompt, where that is echoed."""
        choice = self._choices[index]
        if isinstance(event, Prefilling):
            return b""
        data = b""
        for part in (choice.begin() if not choice.text else None, choice.take(event)):
            if part is not None:
                data += self._chunk(index, part.text, choice.shown_logprobs(part))
        if isinstance(event, Finished):
            data += self._chunk(index, "", None, choice.finish_reason)
        return data

    def end(self) -> bytes:
        """Return the usage, where it is wanted, and [DONE]."""
        return self._chunks.end(self._usage())

    def whole(self) -> bytes:
        """Return the answer as JSON."""
        choices = [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": None if choice.request.logprobs is None else completion_logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return orjson.dumps(self._chunks.members | {"choices": choices, "usage": self._usage()})

    def _chunk(self, index: int, text: str, logprobs: Mapping[str, Any] | None, reason: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._chunks.head + orjson.dumps(choice) + self._chunks.tail

    def _usage(self) -> dict[str, Any]:
        ends = [choice.finished for choice in self._choices if choice.finished is not None]
        usage = usage_body(ends, self._parsed.n)
        if self._parsed.echoes_only:
            usage |= {"completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}
        return usage


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
