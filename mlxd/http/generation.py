"""From a leased model to events: what all routes that generate share, streamed or not. Writes nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from mlxd.engine.base import Delta, Finished, FinishReason, GenerationRequest, Prefilling, PreparedPrompt, PromptScored
from mlxd.http.context import CONTEXT, EXCHANGE, Tokens
from mlxd.pool.lease import Lease
from mlxd.protocol.errors import ContextLengthExceeded, GenerationFailed, InvalidRequest, RequestCancelled
from mlxd.requests import RunningRequest

T = TypeVar("T")
AnswerEvent = Prefilling | PromptScored | Delta | Finished
Sink = Callable[[AnswerEvent], Awaitable[None]]
IndexedSink = Callable[[int, AnswerEvent], Awaitable[None]]
_SEEDS = 2**64
_OWN_FIELDS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Generation:
    """One request's hold on a model, and its place in the list of running requests."""

    lease: Lease
    running: RunningRequest
    on_token: Callable[[], None]  # called at every token, the first one counts
    tokens: Tokens  # what is counted of it
    default_max_tokens: int | None = None  # of the model's settings, for requests that say nothing
    note_ignored: Callable[[Collection[str]], None] = lambda _: None  # told of what the model cannot act upon
    on_tools: Callable[[], None] = lambda: None  # called when the prompt of a request with tools is ready

    async def deliver(self, requests: Sequence[GenerationRequest], n: int, sink: IndexedSink) -> list[Finished]:
        """Generate *n* answers to each of *requests*, all side by side, and give *sink* what comes of them.

        Args:
            requests: one per prompt.
            n: answers per prompt, which share its prefill. With a seed the i-th answer has seed + i.
            sink: gets the number of the answer (prompt by prompt) and its events: `Prefilling` (the first says how much
                of the prompt was cached), `PromptScored`, deltas with text, calls or logprobs, and `Finished`.

        Returns:
            how each answer ended, in the order of their numbers.

        Raises:
            RequestCancelled: it was ended by command.
            MlxdError: whatever the pool or the engine says; the other answers are given up.
        """

        async def answer(place: int, request: GenerationRequest) -> list[Finished]:
            if self.default_max_tokens is not None:
                request = replace(request, default_max_tokens=self.default_max_tokens)
            prompt = await self.lease.prepare(request)
            self.tokens.prompt += len(prompt.tokens)
            self.note_ignored(prompt.ignored)
            if prompt.tools is not None:
                self.on_tools()
            return await together(
                self._deliver_one(_numbered(request, number), prompt, partial(sink, place * n + number), number)
                for number in range(n)
            )

        answers = await together(answer(place, request) for place, request in enumerate(requests))
        return [finished for group in answers for finished in group]

    async def count(self, request: GenerationRequest) -> int:
        """Return how many tokens a prompt has, or at least has: one over the context is what clients count for.

        Raises:
            MlxdError: whatever the engine says.
        """
        try:
            return len((await self.lease.prepare(request)).tokens)
        except ContextLengthExceeded as error:
            if "prompt_tokens" not in error.data:
                raise
            tokens: int = error.data["prompt_tokens"]
            return tokens

    async def _deliver_one(
        self, request: GenerationRequest, prompt: PreparedPrompt, sink: Sink, number: int
    ) -> Finished:
        finished: Finished | None = None
        counted_tokens, is_prefilling = 0, False
        async with aclosing(self.lease.generate(request, prompt)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    self.running.begin_answering()
                    self.running.completion_tokens += event.completion_tokens - counted_tokens
                    self.tokens.completion += event.completion_tokens - counted_tokens
                    counted_tokens = event.completion_tokens
                    self.on_token()
                    if event.text or event.logprobs or event.calls:
                        await sink(event)
                elif isinstance(event, Prefilling | PromptScored):
                    if isinstance(event, Prefilling) and not is_prefilling and number == 0:
                        self.tokens.cached += event.done  # the first one says what was cached; answers share a prompt
                        is_prefilling = True
                    await sink(event)
                elif isinstance(event, Finished):
                    finished = event
                    self.tokens.completion += event.usage.completion_tokens - counted_tokens
        if finished is None:
            raise GenerationFailed("the model stopped answering without a reason")
        if finished.reason is FinishReason.CANCELLED:
            raise RequestCancelled("the request was cancelled")
        await sink(finished)
        return finished


def _numbered(request: GenerationRequest, number: int) -> GenerationRequest:
    """Return *request* for its answer of that number: with one seed for all, all would be equal."""
    if number == 0 or request.sampling.seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=(request.sampling.seed + number) % _SEEDS))


@asynccontextmanager
async def generation(
    request: web.Request, model: str, fields: Mapping[str, str] = _OWN_FIELDS
) -> AsyncIterator[Generation]:
    """Wait for *model*, an id or an alias, and hold it; the request is listed from before until after its last byte.

    *fields* says what the API of the request calls fields that the engine calls as chats do.

    Raises:
        InvalidRequest: the model makes vectors; it is not loaded to find that out.
        MlxdError: as `leased`.
    """
    context = request.app[CONTEXT]
    if context.catalog.has(model) and context.catalog.resolve(model).kind == "embedding":
        hint = "POST /v1/embeddings"
        raise InvalidRequest(f"{model!r} is an embedding model and makes no text", hint=hint, param="model")
    async with leased(request, model) as (lease, running):
        defaults = context.store.current.models.get(running.model)
        default_max_tokens = None if defaults is None else defaults.max_tokens
        exchange = request[EXCHANGE]
        exchange.tokens = Tokens()

        def on_tools() -> None:
            exchange.note_tool_format(lease.facts.tool_format)

        yield Generation(
            lease,
            running,
            exchange.note_first_token,
            exchange.tokens,
            default_max_tokens,
            lambda names: exchange.note_ignored([fields.get(name, name) for name in names]),
            on_tools,
        )


@asynccontextmanager
async def leased(request: web.Request, model: str) -> AsyncIterator[tuple[Lease, RunningRequest]]:
    """Wait for *model*, an id or an alias, and hold it; the request is listed from before until the end.

    Raises:
        MlxdError: as `Pool.lease`.
    """
    context = request.app[CONTEXT]
    exchange = request[EXCHANGE]
    model_id = context.catalog.alias_target(model)
    exchange.note_local(model_id)
    with context.requests.track(exchange.request_id, endpoint=request.path, model=model_id, route="local") as running:
        async with context.pool.lease(model_id, request_id=exchange.request_id) as lease:
            yield lease, running


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once and return their results in order; the first error cancels the others and is raised as it is."""
    coroutines = list(coroutines)
    if len(coroutines) == 1:
        return [await coroutines[0]]  # the usual case needs no task
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
