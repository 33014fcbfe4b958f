"""A request's hold on a model, as the HTTP handlers use it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from mlxd.engine.base import Delta, EngineFacts, Finished, GenerationRequest, Prefilling, PreparedPrompt

GenerateEvent = Prefilling | Delta | Finished


class Lease:
    """The right of one request to use one model; made by `Pool.lease`, given back when its `async with` ends.

    While it prepares or generates, the model stays loaded. While all it does is wait for a slot or for KV memory, the model
    may be unloaded and loaded again beneath it: a `PreparedPrompt` outlives that.
    """

    @property
    def model_id(self) -> str:
        """The model it is a lease of."""
        raise NotImplementedError

    @property
    def request_id(self) -> str:
        """The request that holds it."""
        raise NotImplementedError

    @property
    def facts(self) -> EngineFacts:
        """What was measured when the model was loaded (context length, thinking, tools, template)."""
        raise NotImplementedError

    async def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        """Render, tokenize and check the prompt.

        Raises:
            InvalidRequest: the template refuses the messages, the prompt is empty, or a token id is out of range.
            ContextLengthExceeded: prompt + max_tokens is over the context.
        """
        raise NotImplementedError

    def generate(self, request: GenerationRequest, prompt: PreparedPrompt) -> AsyncIterator[GenerateEvent]:
        """Generate one sequence: `Prefilling`*, then `Delta`*, then one `Finished`. Several may run at once.

        It waits for a slot and for KV memory before the first event. Being paused for memory is invisible but for the time.
        Closing the iterator, or leaving the lease, cancels the sequence within one step.

        Raises:
            DoesNotFit: the prompt can never fit beside the weights under the memory limit.
            QueueTimeout: there was no slot or memory for `queue.timeout`.
            ModelUnloaded, Draining: unloaded by command, or shutdown, before it could start.
            RequestCancelled: aborted by an operator.
            EngineError: the engine failed.
        """
        raise NotImplementedError
