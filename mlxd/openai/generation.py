"""From a leased model to text: what chat and completions share, streamed or not. Writes nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from mlxd.engine.base import Delta, Finished, FinishReason, GenerationRequest, TextKind, Usage
from mlxd.openai.context import CONTEXT, EXCHANGE
from mlxd.pool.lease import Lease
from mlxd.protocol.errors import GenerationFailed, RequestCancelled
from mlxd.requests import RequestState, RunningRequest

T = TypeVar("T")
Sink = Callable[[TextKind, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Generation:
    """One request's hold on a model, and its place in the list of running requests."""

    lease: Lease
    running: RunningRequest

    async def deliver(self, request: GenerationRequest, sink: Sink) -> Finished:
        """Generate one sequence and give its text to *sink* as it comes; return how it ended.

        Raises:
            RequestCancelled: it was ended by command.
            MlxdError: whatever the pool or the engine says.
        """
        prompt = await self.lease.prepare(request)
        finished: Finished | None = None
        counted_tokens = 0
        async with aclosing(self.lease.generate(request, prompt)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    self.running.state = RequestState.ANSWERING
                    self.running.completion_tokens += event.completion_tokens - counted_tokens
                    counted_tokens = event.completion_tokens
                    if event.text:
                        await sink(event.kind, event.text)
                elif isinstance(event, Finished):
                    finished = event
        if finished is None:
            raise GenerationFailed("the model stopped answering without a reason")
        if finished.reason is FinishReason.CANCELLED:
            raise RequestCancelled("the request was cancelled")
        return finished

    async def collect(self, request: GenerationRequest) -> Answer:
        """Generate one sequence to its end and return all of it."""
        pieces: list[tuple[TextKind, str]] = []

        async def keep(kind: TextKind, text: str) -> None:
            pieces.append((kind, text))

        finished = await self.deliver(request, keep)
        return Answer(tuple(pieces), finished.reason, finished.usage)


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer of one sequence."""

    pieces: tuple[tuple[TextKind, str], ...]  # in the order of their making
    reason: FinishReason
    usage: Usage

    def text(self, *kinds: TextKind) -> str:
        """Return the text of these kinds."""
        return "".join(text for kind, text in self.pieces if kind in kinds)


@asynccontextmanager
async def generation(request: web.Request, model: str) -> AsyncIterator[Generation]:
    """Wait for *model* and hold it; the request is listed from before the wait until after its last byte."""
    context = request.app[CONTEXT]
    exchange = request[EXCHANGE]
    exchange.note_local(model)
    with context.requests.track(exchange.request_id, endpoint=request.path, model=model, route="local") as running:
        async with context.pool.lease(model, request_id=exchange.request_id) as lease:
            yield Generation(lease, running)


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
