"""The run loop of the device thread, the sole owner of weights, KV, prompt caches, batches and MLX's limits.

A pass: take the commands that lie in the inbox, give each busy model one step, give the load whose turn it is one
slice, hand this pass's posts to the event loop in one call. With nothing to do it blocks on the inbox. What is decided
here depends on the order of the commands and on steps, never on the clock (`pace.py` sizes chunks by it, which changes
no result).

Importing this module imports mlx-lm, which takes a second: `device.py` does it on the device thread.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import mlx.core as mx

from mlxd.engine.base import BackendLimits, Failed, Listener, SchedulingParams, SequenceEvent
from mlxd.engine.command import (
    Cancel,
    Close,
    Command,
    Grant,
    Load,
    Pause,
    Post,
    ReadMemory,
    Resume,
    SetLimits,
    SetPromptCacheLimit,
    SetScheduling,
    Start,
    StartEmbedding,
    TrimPromptCache,
    Unload,
    WarmUp,
)
from mlxd.engine.embedding import Embedder
from mlxd.engine.fault import generation_failure, in_words
from mlxd.engine.hidden import TextForward
from mlxd.engine.inbox import Inbox
from mlxd.engine.load_queue import LoadQueue
from mlxd.engine.loader import LoadedModel
from mlxd.engine.memory import MemoryLimits, free_memory, read_memory
from mlxd.engine.text import TextModel
from mlxd.protocol.errors import GenerationFailed, LoadFailed, MlxdError, RequestCancelled

_log = logging.getLogger(__name__)


class Runner:
    """All models, on the thread that calls `run`."""

    def __init__(
        self,
        inbox: Inbox,
        deliver: Callable[[list[Post]], None],
        on_prompt_cache: Callable[[tuple[int, int]], None],
        limits: BackendLimits,
        scheduling: SchedulingParams,
    ) -> None:
        """Take commands from *inbox*, hand posts to *deliver*; *on_prompt_cache* gets (key, bytes) when they change."""
        self._inbox = inbox
        self._deliver = deliver
        self._on_prompt_cache = on_prompt_cache
        self._limits = MemoryLimits(limits)
        self._scheduling = scheduling
        self._models: dict[int, TextModel] = {}
        self._embedders: dict[int, Embedder] = {}  # of text models from their first job on
        self._cache_bytes: dict[int, int] = {}  # as posted
        self._posts: list[Post] = []
        self._loads = LoadQueue(self._post, free_memory)
        self._open = True

    def run(self) -> None:
        """Run until `Close`; then nothing of MLX is left on this thread."""
        # Without this every collection after an unload walks through all of transformers, 30 ms in which no row moves.
        gc.freeze()
        error: MlxdError = RequestCancelled("the daemon is shutting down")
        try:
            while self._open:
                self._run_pass()
        except Exception as bug:
            error = GenerationFailed(f"the device thread failed: {in_words(bug)}")
            raise
        finally:
            self._end_all(error)
            free_memory()
            # Last: a process that ends while a thread still has streams may abort.
            mx.clear_streams()

    def _run_pass(self) -> None:
        self._take_commands()
        decoding = {key for key, model in self._models.items() if model.is_decoding}
        for key, model in self._models.items():
            if model.is_busy:
                self._step(model, others_decode=bool(decoding - {key}))
        for embedder in self._embedders.values():
            if embedder.is_busy:
                embedder.step(others_decode=bool(decoding))
        if self._loads.is_busy:
            complete = self._loads.advance(is_shared=bool(decoding))
            if complete is not None:
                self._add(*complete)
        self._hand_over()

    def _take_commands(self) -> None:
        """Carry out what lies in the inbox; wait for the first command when there is nothing else to do."""
        if not self._loads.is_busy and not any(part.is_busy for part in self._parts()):
            self._carry_out(self._inbox.get())
        while self._open and not self._inbox.is_empty():
            self._carry_out(self._inbox.get())

    def _carry_out(self, command: Command) -> None:  # noqa: C901, PLR0912 one case per command
        match command:
            case StartEmbedding():
                self._start_embedding(command)
            case Start() | Grant() | Pause() | Resume() | Cancel():
                self._carry_out_for_sequence(command)
            case Load():
                self._begin_load(command)
            case Unload():
                self._unload(command)
            case SetPromptCacheLimit():
                if command.key in self._models:
                    self._models[command.key].prompts.set_limit(command.max_bytes)
                    mx.clear_cache()
            case TrimPromptCache():
                self._trim(command)
            case SetLimits():
                self._limits.apply(command.limits)
            case SetScheduling():
                self._scheduling = command.params
                for part in self._parts():
                    part.set_scheduling(command.params)
            case ReadMemory():
                self._posts.append((command.reply, read_memory()))
            case WarmUp():
                self._posts.append((command.reply, None))
            case Close():
                self._open = False

    def _start_embedding(self, command: StartEmbedding) -> None:
        model = self._models.get(command.key)
        if model is not None and command.key not in self._embedders:
            vectors = model.loaded.facts.vectors
            if vectors is not None:
                forward = TextForward(model.loaded.model, model.loaded.caches, vectors.pooling)
                self._embedders[command.key] = Embedder(model.model_id, forward, self._scheduling, self._post_event)
        if command.key in self._embedders:
            self._embedders[command.key].start(command)
        else:
            error = RequestCancelled("the model was unloaded before the request began")
            self._post_event(command.listener, Failed(command.sequence_id, error))

    def _carry_out_for_embedding(self, embedder: Embedder, command: Grant | Pause | Resume | Cancel) -> None:
        match command:
            case Pause():
                embedder.pause(command.sequence_id)
            case Resume():
                embedder.resume(command.sequence_id, command.kv_tokens)
            case Cancel():
                embedder.cancel(command.sequence_id)

    def _carry_out_for_sequence(self, command: Start | Grant | Pause | Resume | Cancel) -> None:
        embedder = self._embedders.get(command.key)
        if embedder is not None and not isinstance(command, Start) and embedder.has(command.sequence_id):
            self._carry_out_for_embedding(embedder, command)
            return
        model = self._models.get(command.key)
        if model is None:  # unloaded meanwhile: its sequences have failed already
            if isinstance(command, Start):
                error = RequestCancelled("the model was unloaded before the request began")
                self._post_event(command.listener, Failed(command.submit.sequence_id, error))
            return
        try:
            match command:
                case Start():
                    model.submit(command.submit, command.listener)
                case Grant():
                    model.grant(command.sequence_id, command.kv_tokens)
                case Pause():
                    model.pause(command.sequence_id)
                case Resume():
                    model.resume(command.sequence_id, command.kv_tokens)
                case Cancel():
                    model.cancel(command.sequence_id)
        except Exception as error:  # noqa: BLE001 the engine's edge: mlx-lm refused, and its batch is in an unknown state
            self._fail(model, error)

    def _step(self, model: TextModel, *, others_decode: bool) -> None:
        try:
            model.step(others_decode=others_decode)
        except Exception as error:  # noqa: BLE001 the engine's edge: anything that MLX, mlx-lm or a model raises
            self._fail(model, error)

    def _fail(self, model: TextModel, error: Exception) -> None:
        _log.error("a step of %s failed", model.model_id, exc_info=error)
        model.fail_batch(generation_failure(model.model_id, error))
        error.__traceback__ = None  # its frames hold the batch
        free_memory()

    def _begin_load(self, command: Load) -> None:
        base = None if command.base_key is None else self._models.get(command.base_key)
        if command.base_key is not None and base is None:
            error = LoadFailed(f"model '{command.spec.model_id}' cannot be loaded: its base was unloaded meanwhile")
            self._posts.append((command.reply, error))
            return
        self._loads.begin(command, None if base is None else base.loaded)

    def _add(self, command: Load, loaded: LoadedModel) -> None:
        if loaded.encoder is not None:
            embedder = Embedder(loaded.model_id, loaded.encoder, self._scheduling, self._post_event)
            self._embedders[command.key] = embedder
        else:
            self._models[command.key] = TextModel(
                loaded, command.spec.prompt_cache_limit_bytes, self._scheduling, self._post_event
            )
            self._cache_bytes[command.key] = 0
        self._posts.append((command.reply, loaded.facts))

    def _unload(self, command: Unload) -> None:
        self._loads.abort(command.key, RequestCancelled("the load was cancelled"))
        model, embedder = self._models.pop(command.key, None), self._embedders.pop(command.key, None)
        self._cache_bytes.pop(command.key, None)
        if embedder is not None:
            embedder.close(RequestCancelled(f"model '{embedder.model_id}' was unloaded"))
        if model is not None:
            model.close(RequestCancelled(f"model '{model.model_id}' was unloaded"))
        free_memory()
        self._posts.append((command.reply, None))

    def _trim(self, command: TrimPromptCache) -> None:
        left_bytes = 0
        if command.key in self._models:
            prompts = self._models[command.key].prompts
            prompts.trim(command.max_bytes)
            left_bytes = prompts.stored_bytes
            mx.clear_cache()
        self._posts.append((command.reply, left_bytes))

    def _end_all(self, error: MlxdError) -> None:
        """End all sequences and loads with *error*, and let go of every model."""
        self._loads.abort_all(error)
        for part in self._parts():
            part.close(error)
        self._embedders.clear()
        self._models.clear()
        self._hand_over()

    def _post(self, post: Post) -> None:
        self._posts.append(post)

    def _post_event(self, listener: Listener, event: SequenceEvent) -> None:
        self._posts.append((listener, event))

    def _parts(self) -> list[TextModel | Embedder]:
        """Return all that has steps to do."""
        return [*self._models.values(), *self._embedders.values()]

    def _hand_over(self) -> None:
        """Hand this pass's posts to the event loop, the sizes of changed prompt caches first."""
        for key, model in self._models.items():
            stored_bytes = model.prompts.stored_bytes
            if stored_bytes != self._cache_bytes[key]:
                self._cache_bytes[key] = stored_bytes
                self._posts.insert(0, (self._on_prompt_cache, (key, stored_bytes)))
        if self._posts:
            self._deliver(self._posts)
            self._posts = []
