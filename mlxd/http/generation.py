"""From a model of this machine to events: the lease, and ONE generator that all routes read. Writes nothing itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from mlxd.catalog import ModelRef
from mlxd.engine.base import AnswerEvent, Delta, Finished, FinishReason, GenerationRequest, Prefilling, PreparedPrompt
from mlxd.engine.vector import Embedded, EmbeddingRequest
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE, Exchange, Tokens
from mlxd.pool.lease import Lease
from mlxd.protocol.errors import ContextLengthExceeded, GenerationFailed, RequestCancelled
from mlxd.renderer import Job
from mlxd.requests import RunningRequest

Events = AsyncGenerator[tuple[int, AnswerEvent], None]
_SEEDS = 2**64
# Vectors that are written before others have their turn on the event loop: 32 of 4096 numbers take some 10 ms.
_VECTORS_AT_ONCE = 32


@asynccontextmanager
async def hold(request: web.Request, model: ModelRef) -> AsyncIterator[Held]:
    """Wait for the model and hold it; the request is listed from before until after its last byte.

    Raises:
        MlxdError: as `Pool.lease`.
    """
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    exchange.route, exchange.model = "local", model.id
    with context.requests.track(exchange.request_id, endpoint=request.path, model=model.id, route="local") as running:
        exchange.number = running.number
        async with context.pool.lease(model.id, request_id=exchange.request_id) as lease:
            tokens = exchange.tokens = Tokens()
            yield Held(lease, running, exchange, tokens, None if model.settings is None else model.settings.max_tokens)


@dataclass(frozen=True, slots=True)
class Held:
    """A model while one request has it."""

    lease: Lease
    running: RunningRequest
    exchange: Exchange
    tokens: Tokens
    default_max_tokens: int | None  # of the model's settings, for requests that say nothing

    def events(self, job: Job) -> Events:
        """Return what the model makes of *job*: its events, each with the number of its sequence, prompt by prompt.

        They are `Prefilling` (the first says how much of the prompt was cached), `PromptScored`, `Delta`, `Finished`.
        Vectors are one `Embedded` per text, after a `Prefilling` that says how many tokens the texts have.

        Raises:
            RequestCancelled: it was ended by command.
            MlxdError: whatever the pool or the engine says; the other sequences are given up.
        """
        if isinstance(job.asked, EmbeddingRequest):
            return self._embed(job.asked)
        if job.only_counts:
            return self._count(job.asked[0])
        return _side_by_side([self._answers(request, job, place) for place, request in enumerate(job.asked)])

    async def _answers(self, request: GenerationRequest, job: Job, place: int) -> Events:
        """Yield all answers to one prompt."""
        if self.default_max_tokens is not None:
            request = replace(request, default_max_tokens=self.default_max_tokens)
        prompt = await self.lease.prepare(request)
        self.tokens.prompt += len(prompt.tokens)
        if prompt.ignored:
            self.exchange.note_ignored([job.fields.get(name, name) for name in prompt.ignored])
        if prompt.tools is not None:
            self.exchange.tool_format = self.lease.facts.tool_format
        answers = [self._answer(request, prompt, place * job.n, number) for number in range(job.n)]
        async with aclosing(_side_by_side(answers)) as events:
            async for event in events:
                yield event

    async def _answer(self, request: GenerationRequest, prompt: PreparedPrompt, first: int, number: int) -> Events:
        """Yield one answer, and count its tokens."""
        if number > 0 and request.sampling.seed is not None:  # with one seed for all, all would be equal
            sampling = replace(request.sampling, seed=(request.sampling.seed + number) % _SEEDS)
            request = replace(request, sampling=sampling)
        counted_tokens, is_prefilling = 0, False
        async with aclosing(self.lease.generate(request, prompt)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    self.running.begin_answering()
                    self.running.completion_tokens += event.completion_tokens - counted_tokens
                    self.tokens.completion += event.completion_tokens - counted_tokens
                    counted_tokens = event.completion_tokens
                    self.exchange.note_first_token()
                elif isinstance(event, Prefilling) and number == 0 and not is_prefilling:
                    self.tokens.cached += event.done  # the first one says what was cached; answers share a prompt
                    is_prefilling = True
                elif isinstance(event, Finished):
                    self.tokens.completion += event.usage.completion_tokens - counted_tokens
                    if event.reason is FinishReason.CANCELLED:
                        raise RequestCancelled("the request was cancelled")
                    yield first + number, event
                    return
                yield first + number, event
        raise GenerationFailed("the model stopped answering without a reason")

    async def _count(self, request: GenerationRequest) -> Events:
        """Yield how many tokens a prompt has, or at least has: one over the context is what clients count for."""
        try:
            tokens = len((await self.lease.prepare(request)).tokens)
        except ContextLengthExceeded as error:
            if "prompt_tokens" not in error.data:
                raise
            tokens = error.data["prompt_tokens"]
        yield 0, Prefilling(0, 0, tokens)

    async def _embed(self, request: EmbeddingRequest) -> Events:
        inputs = await self.lease.prepare_inputs(request)
        self.tokens.prompt = inputs.total_tokens
        yield 0, Prefilling(0, 0, inputs.total_tokens)
        vectors = await self.lease.embed(inputs)
        self.running.begin_answering()
        for index, vector in enumerate(vectors):
            yield index, Embedded(0, (vector,))
            if index % _VECTORS_AT_ONCE == _VECTORS_AT_ONCE - 1:
                await asyncio.sleep(0)


def _side_by_side(streams: Sequence[Events]) -> Events:
    """Return one stream of what comes of all; the first error ends the others and is raised as it is."""
    return streams[0] if len(streams) == 1 else _merged(streams)  # the usual case needs no task


async def _merged(streams: Sequence[Events]) -> Events:
    arrived: asyncio.Queue[tuple[int, AnswerEvent] | asyncio.Task[None]] = asyncio.Queue()

    async def forward(stream: Events) -> None:
        async with aclosing(stream):
            async for event in stream:
                arrived.put_nowait(event)

    running = {asyncio.create_task(forward(stream)) for stream in streams}
    for task in running:
        task.add_done_callback(arrived.put_nowait)
    try:
        while running:
            event = await arrived.get()
            if isinstance(event, asyncio.Task):
                running.discard(event)
                event.result()
            else:
                yield event
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
