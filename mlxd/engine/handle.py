"""A loaded model as the event loop sees it: posts commands to the device thread, holds nothing of MLX."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from mlxd.engine.base import EngineFacts, GenerationRequest, Listener, PreparedPrompt, Submit
from mlxd.engine.command import (
    Cancel,
    Grant,
    Pause,
    Resume,
    SetPromptCacheLimit,
    Start,
    StartEmbedding,
    TrimPromptCache,
)
from mlxd.engine.inbox import Inbox
from mlxd.engine.inputs import InputReader
from mlxd.engine.prompt import PromptRenderer
from mlxd.engine.vector import EmbeddingRequest, PreparedInputs
from mlxd.protocol.errors import InvalidRequest


class LoadedEngine:
    """Implements `base.Engine`."""

    def __init__(
        self,
        key: int,
        model_id: str,
        facts: EngineFacts,
        renderer: PromptRenderer | None,
        inputs: InputReader,
        inbox: Inbox,
        workers: Executor,
        grammar_workers: Executor,
    ) -> None:
        """Take the name that the device thread knows the model by, and where commands, prompts and texts go.

        Without a *renderer* it makes no text. Prompts whose answers are bound go to *grammar_workers*.
        """
        self.key = key
        self._model_id = model_id
        self._facts = facts
        self._renderer = renderer
        self._inputs = inputs
        self._inbox = inbox
        self._workers = workers
        self._grammar_workers = grammar_workers
        self._prompt_cache_bytes = 0

    @property
    def model_id(self) -> str:
        """The id it was loaded as."""
        return self._model_id

    @property
    def facts(self) -> EngineFacts:
        """What was measured at the load."""
        return self._facts

    @property
    def prompt_cache_bytes(self) -> int:
        """Bytes in the prompt cache, as of the last posted pass."""
        return self._prompt_cache_bytes

    async def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        """Render, tokenize and check on a worker thread; raises as `base.Engine.prepare` says."""
        if self._renderer is None:
            raise InvalidRequest(
                f"model '{self._model_id}' makes embeddings and no text", hint="POST /v1/embeddings", param="model"
            )
        workers = self._workers if request.constraint is None else self._grammar_workers
        return await asyncio.get_running_loop().run_in_executor(workers, self._renderer.prepare, request)

    def submit(self, submit: Submit, listener: Listener) -> None:
        """Start a sequence."""
        self._inbox.put(Start(self.key, submit, listener))

    async def prepare_inputs(self, request: EmbeddingRequest) -> PreparedInputs:
        """Tokenize and check on a worker thread; raises as `base.Engine.prepare_inputs` says."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, self._inputs.prepare, request)

    def embed(self, sequence_id: int, inputs: PreparedInputs, kv_tokens: int, listener: Listener) -> None:
        """Make vectors."""
        self._inbox.put(StartEmbedding(self.key, sequence_id, inputs, kv_tokens, listener))

    def grant(self, sequence_id: int, kv_tokens: int) -> None:
        """Raise a sequence's grant."""
        self._inbox.put(Grant(self.key, sequence_id, kv_tokens))

    def pause(self, sequence_id: int) -> None:
        """Drop a sequence's KV."""
        self._inbox.put(Pause(self.key, sequence_id))

    def resume(self, sequence_id: int, kv_tokens: int) -> None:
        """Go on with a paused sequence."""
        self._inbox.put(Resume(self.key, sequence_id, kv_tokens))

    def cancel(self, sequence_id: int) -> None:
        """End a sequence."""
        self._inbox.put(Cancel(self.key, sequence_id))

    def set_prompt_cache_limit(self, max_bytes: int) -> None:
        """Bound the prompt cache."""
        self._inbox.put(SetPromptCacheLimit(self.key, max_bytes))

    async def trim_prompt_cache(self, max_bytes: int) -> int:
        """Shrink the prompt cache once; return the bytes left."""
        left_bytes: int = await self._inbox.ask(lambda reply: TrimPromptCache(self.key, max_bytes, reply))
        return left_bytes

    def _on_prompt_cache(self, stored_bytes: int) -> None:
        self._prompt_cache_bytes = stored_bytes
