"""A request's hold on a model, as the HTTP handlers use it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from mlxd.engine.base import (
    Delta,
    Engine,
    EngineFacts,
    Finished,
    GenerationRequest,
    Prefilling,
    PreparedPrompt,
    PromptScored,
)
from mlxd.engine.vector import Embedded, EmbeddingRequest, PreparedInputs
from mlxd.pool.resident import Ticket
from mlxd.pool.scheduler import Scheduler
from mlxd.protocol.errors import RequestCancelled

GenerateEvent = Prefilling | PromptScored | Delta | Finished


class Lease:
    """The right of one request to use one model; made by `Pool.lease`, given back when its `async with` ends.

    While it prepares or generates, the model stays loaded. While all it does is wait for a slot or for KV memory,
    the model may be unloaded and loaded again beneath it: a `PreparedPrompt` outlives that, unless the files or the
    context have changed.
    """

    def __init__(self, ticket: Ticket, scheduler: Scheduler) -> None:
        """Wrap a granted ticket; called by `Pool.lease` only."""
        self._ticket = ticket
        self._scheduler = scheduler

    @property
    def model_id(self) -> str:
        """The model it is a lease of."""
        return self._ticket.resident.id

    @property
    def request_id(self) -> str:
        """The request that holds it."""
        return self._ticket.request_id

    @property
    def facts(self) -> EngineFacts:
        """What was measured when the model was loaded (context length, thinking, tools, template)."""
        facts = self._ticket.resident.facts
        if facts is None:
            raise RuntimeError(f"a lease of {self.model_id} was granted before its load")
        return facts

    async def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        """Render, tokenize and check the prompt.

        Raises:
            InvalidRequest: the template refuses the messages, the prompt is empty, or a token id is out of range.
            ContextLengthExceeded: the prompt alone is over the context.
            TemplateFailed: the chat template does not end in time, or takes too much.
            RequestCancelled: aborted by an operator.
        """
        async with self._preparing() as engine:
            return await engine.prepare(request)

    async def prepare_inputs(self, request: EmbeddingRequest) -> PreparedInputs:
        """Tokenize and check texts.

        Raises:
            InvalidRequest: the model makes no vectors of that kind, a text is empty, or a token id is out of range.
            ContextLengthExceeded: a text is over the context.
            RequestCancelled: aborted by an operator.
        """
        async with self._preparing() as engine:
            return await engine.prepare_inputs(request)

    @asynccontextmanager
    async def _preparing(self) -> AsyncIterator[Engine]:
        """Hold the engine for as long as something is made ready for it."""
        engine = await self._scheduler.attach(self._ticket)
        self._ticket.prepared_for = self._ticket.resident.load.origin
        self._ticket.preparing += 1
        try:
            yield engine
        finally:
            self._ticket.preparing -= 1
            if not self._ticket.holds:
                self._scheduler.pump()

    async def embed(self, inputs: PreparedInputs) -> tuple[bytes, ...]:
        """Make the vectors of all texts, in their order, each as little-endian float32 of unit length.

        A request for vectors takes a slot and memory like a sequence, and waits, pauses and ends like one. Leaving the
        lease, or cancelling the task, ends it within one slice.

        Raises:
            DoesNotFit, QueueTimeout, LoadFailed, LoadTimeout, ModelUnloaded, Draining, RequestCancelled, EngineError:
                as `generate`.
        """
        sequence = self._scheduler.begin(self._ticket, None, inputs)
        vectors: tuple[bytes, ...] | None = None
        try:
            while not isinstance(event := await sequence.events.get(), Finished):
                if isinstance(event, Embedded):
                    vectors = event.vectors
        finally:
            self._scheduler.drop(sequence)
        if vectors is None:
            raise RequestCancelled("the request was cancelled")
        return vectors

    async def generate(self, request: GenerationRequest, prompt: PreparedPrompt) -> AsyncGenerator[GenerateEvent, None]:
        """Generate one sequence: `Prefilling`*, `PromptScored` if asked for, `Delta`*, then one `Finished`.

        Several may run at once; those of one `PreparedPrompt` share its prefill. It waits for a slot and for KV memory
        before the first event. Being paused for memory is invisible but for the time. Closing the generator, or leaving
        the lease, cancels the sequence within one step.

        Raises:
            DoesNotFit: the prompt can never fit beside the weights under the memory limit.
            QueueTimeout: there was no slot or memory for `queue.timeout`.
            LoadFailed, LoadTimeout: the model was unloaded while it waited, and did not come back.
            ModelUnloaded, Draining: unloaded by command, loaded from other files, or shutdown, before it could start.
            RequestCancelled: aborted by an operator.
            EngineError: the engine failed.
        """
        sequence = self._scheduler.begin(self._ticket, request, prompt)
        try:
            while True:
                event = await sequence.events.get()
                if isinstance(event, Prefilling | PromptScored | Delta | Finished):
                    yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._scheduler.drop(sequence)
