"""A loaded model as the event loop sees it: posts commands to the device thread, holds nothing of MLX."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from mlxd.engine.base import EngineFacts, GenerationRequest, Listener, PreparedPrompt, Submit
from mlxd.engine.command import (
    Cancel,
    Grant,
    Inbox,
    Pause,
    PromptCacheUse,
    Resume,
    SetPromptCacheLimit,
    Start,
    StartEmbedding,
    TrimPromptCache,
)
from mlxd.engine.inputs import InputReader
from mlxd.engine.prompt import PromptRenderer
from mlxd.engine.vector import EmbeddingRequest, PreparedInputs
from mlxd.protocol.errors import InvalidRequest, RequestCancelled

T = TypeVar("T")

# Rendering waits for another process, and tokenizing holds the GIL for the most part: more threads would take turns.
_WORKERS = 2
# Compiling a grammar does not hold the GIL, and a schema of 170 kB takes seconds, for which no plain prompt waits.
_GRAMMAR_WORKERS = 2


class LoadedEngine:
    """Implements `base.Engine`.

    Prompts are made ready on threads of its own: a template or a tokenizer that never ends keeps no other model's
    prompts from being made ready.
    """

    def __init__(
        self,
        key: int,
        model_id: str,
        facts: EngineFacts,
        renderer: PromptRenderer | None,
        inputs: InputReader,
        inbox: Inbox,
    ) -> None:
        """Take the name that the device thread knows the model by, and where commands, prompts and texts go.

        Without a *renderer* it makes no text.
        """
        self.key = key
        self._model_id = model_id
        self._facts = facts
        self._renderer = renderer
        self._inputs = inputs
        self._inbox = inbox
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="mlxd-prompt")
        self._grammar_workers = ThreadPoolExecutor(_GRAMMAR_WORKERS, thread_name_prefix="mlxd-grammar")
        self._is_closed = False
        self._prompt_cache = PromptCacheUse()

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
        """Bytes in the prompt cache, as of the last posted pass, and those of compiled grammars."""
        return self._prompt_cache.stored_bytes + self.grammar_bytes

    @property
    def grammar_bytes(self) -> int:
        """Bytes of compiled grammars."""
        return 0 if self._renderer is None else self._renderer.grammars.held_bytes

    @property
    def prompts_too_large(self) -> int:
        """How many prompts were not kept, as of the last posted pass."""
        return self._prompt_cache.too_large

    async def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        """Render, tokenize and check on a worker thread; raises as `base.Engine.prepare` says."""
        if self._renderer is None:
            raise InvalidRequest(
                f"model '{self._model_id}' makes embeddings and no text", hint="POST /v1/embeddings", param="model"
            )
        workers = self._workers if request.constraint is None else self._grammar_workers
        left = threading.Event()
        try:
            prepare = partial(self._renderer.prepare, request, lambda: self._is_closed or left.is_set())
            return await self._on(workers, prepare)
        finally:
            left.set()

    def submit(self, submit: Submit, listener: Listener) -> None:
        """Start a sequence."""
        self._inbox.put(Start(self.key, submit, listener))

    async def prepare_inputs(self, request: EmbeddingRequest) -> PreparedInputs:
        """Tokenize and check on a worker thread; raises as `base.Engine.prepare_inputs` says."""
        return await self._on(self._workers, partial(self._inputs.prepare, request))

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
        """Shrink the caches once, grammars first, as they are made again sooner; return the bytes left."""
        if self._renderer is not None:
            self._renderer.grammars.trim(max(0, max_bytes - self._prompt_cache.stored_bytes))
        kv_bytes = max(0, max_bytes - self.grammar_bytes)
        left_bytes: int = await self._inbox.ask(lambda reply: TrimPromptCache(self.key, kv_bytes, reply))
        return left_bytes + self.grammar_bytes

    def close(self) -> None:
        """End the work that goes on and forget the grammars; nobody waits for the threads."""
        self._is_closed = True
        if self._renderer is not None:
            self._renderer.grammars.trim(0)
        self._workers.shutdown(wait=False)
        self._grammar_workers.shutdown(wait=False)

    async def _on(self, workers: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        if self._is_closed:  # unloaded by force while the request was on its way here
            raise RequestCancelled(f"model '{self._model_id}' was unloaded")
        return await asyncio.get_running_loop().run_in_executor(workers, work)

    def _on_prompt_cache(self, use: PromptCacheUse) -> None:
        self._prompt_cache = use
