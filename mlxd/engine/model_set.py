"""The models on the device thread, and what keeps a fault of one of them inside that model.

When a step or a command fails, the batch of its model ends with the error. Where that fails too, or leaves the sequence
of the command without an end, all sequences of the model end and it begins anew with its weights. Whatever happens in a
model, a sequence that was started gets exactly one end.

Everything that a library raises is caught, also what is no `Exception`: a panic of the tokenizers is none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import mlx.core as mx

from mlxd.engine.base import Failed, Finished, Listener, SchedulingParams, SequenceEvent
from mlxd.engine.command import (
    Cancel,
    Grant,
    Pause,
    Post,
    PromptCacheUse,
    Resume,
    SequenceCommand,
    Start,
    StartEmbedding,
)
from mlxd.engine.embedding import Embedder
from mlxd.engine.fault import generation_failure
from mlxd.engine.hidden import TextForward
from mlxd.engine.loader import LoadedModel
from mlxd.engine.memory import free_memory
from mlxd.engine.pace import StepTurns
from mlxd.engine.prompt_cache import PromptCache
from mlxd.engine.row import PostEvent
from mlxd.engine.text import TextModel
from mlxd.protocol.errors import MlxdError, RequestCancelled

_log = logging.getLogger(__name__)

Part = TextModel | Embedder


class ModelSet:
    """All loaded models by key; their events go to *post*."""

    def __init__(self, scheduling: SchedulingParams, post: Callable[[Post], None]) -> None:
        self._scheduling = scheduling
        self._post = post
        self._texts: dict[int, TextModel] = {}
        self._embedders: dict[int, Embedder] = {}  # of text models from their first job on
        self._running: dict[tuple[int, int], tuple[Part, Listener]] = {}  # by key and sequence, until its end
        self._turns = StepTurns()

    @property
    def is_busy(self) -> bool:
        """Whether a round has anything to do."""
        return any(part.is_busy for _, part in self._parts())

    @property
    def is_decoding(self) -> bool:
        """Whether a stream waits for its next token."""
        return any(model.is_decoding for model in self._texts.values())

    def loaded(self, key: int) -> LoadedModel | None:
        """Return the text model of *key*, for an adapter to be put on."""
        model = self._texts.get(key)
        return None if model is None else model.loaded

    def prompt_caches(self) -> dict[int, PromptCacheUse]:
        """Return what there is to say of each prompt cache, by key."""
        texts = self._texts.items()
        return {key: PromptCacheUse(model.prompts.stored_bytes, model.prompts.too_large) for key, model in texts}

    def add(self, key: int, loaded: LoadedModel, prompt_cache_limit_bytes: int) -> None:
        """Take a model whose weights are in memory."""
        if loaded.encoder is not None:
            self._embedders[key] = Embedder(loaded.model_id, loaded.encoder, self._scheduling, self._poster(key))
        else:
            self._texts[key] = TextModel(loaded, prompt_cache_limit_bytes, self._scheduling, self._poster(key))

    def remove(self, key: int) -> None:
        """End the sequences of the model and let go of it; a key that is not known is ignored."""
        for part in (self._embedders.pop(key, None), self._texts.pop(key, None)):
            if part is not None:
                self._close(part, RequestCancelled(f"model '{part.model_id}' was unloaded"))

    def close(self, error: MlxdError) -> None:
        """End all sequences with *error* and let go of all models."""
        for _, part in self._parts():
            self._close(part, error)
        self._embedders.clear()
        self._texts.clear()

    def set_scheduling(self, params: SchedulingParams) -> None:
        """Change how prefill shares the device."""
        self._scheduling = params
        for key, part in self._parts():
            try:
                part.set_scheduling(params)
            except BaseException as error:  # noqa: BLE001 the model's fault
                self._fail(key, part, error)

    def set_prompt_cache_limit(self, key: int, max_bytes: int) -> None:
        """Bound the prompt cache of a model."""
        model = self._texts.get(key)
        if model is not None:
            self._change_prompts(model, lambda prompts: prompts.set_limit(max_bytes), max_bytes)

    def trim_prompt_cache(self, key: int, max_bytes: int) -> int:
        """Shrink the prompt cache of a model once; return the bytes left."""
        model = self._texts.get(key)
        if model is None:
            return 0
        self._change_prompts(model, lambda prompts: prompts.trim(max_bytes), model.prompts.max_bytes)
        return model.prompts.stored_bytes

    # Sequences

    def carry_out(self, command: SequenceCommand) -> None:
        """Carry out a command for a sequence; one for a model that has gone is harmless."""
        if isinstance(command, Start | StartEmbedding):
            self._start(command)
            return
        part, _ = self._running.get((command.key, command.sequence_id), (None, None))
        if part is not None:
            self._guard(command.key, part, command.sequence_id, lambda: _carry_out(part, command))

    def step(self) -> None:
        """Do one round: each busy model does its steps in turn, short ones several."""
        decoding = {key for key, model in self._texts.items() if model.is_decoding}
        busy = [(key, part) for key, part in self._parts() if part.is_busy]
        steps = self._turns.plan([part for _, part in busy])
        for key, part in busy:
            others_decode = bool(decoding - {key}) if isinstance(part, TextModel) else bool(decoding)
            for _ in range(steps[part]):
                started_s = time.perf_counter()
                try:
                    part.step(others_decode=others_decode)
                    is_done = not part.is_busy
                except BaseException as error:  # noqa: BLE001 anything that MLX, mlx-lm or a model raises
                    self._fail(key, part, error)
                    break
                self._turns.record(part, time.perf_counter() - started_s)
                if is_done:
                    break

    def _start(self, command: Start | StartEmbedding) -> None:
        sequence_id = command.sequence_id if isinstance(command, StartEmbedding) else command.submit.sequence_id
        try:
            part = self._embedder(command.key) if isinstance(command, StartEmbedding) else self._texts.get(command.key)
        except BaseException as error:  # noqa: BLE001 the model's fault
            _log.error("sequence %d could not begin", sequence_id, exc_info=error)
            failure = generation_failure(self._texts[command.key].model_id, error)
            self._post((command.listener, Failed(sequence_id, failure)))
            return
        if part is None:  # unloaded meanwhile: its sequences have failed already
            gone = RequestCancelled("the model was unloaded before the request began")
            self._post((command.listener, Failed(sequence_id, gone)))
            return
        self._running[command.key, sequence_id] = (part, command.listener)
        self._guard(command.key, part, sequence_id, lambda: _start(part, command))

    def _embedder(self, key: int) -> Embedder | None:
        model = self._texts.get(key)
        if model is not None and key not in self._embedders:
            vectors = model.loaded.facts.vectors
            if vectors is not None:
                forward = TextForward(model.loaded.model, model.loaded.caches, vectors.pooling)
                self._embedders[key] = Embedder(model.model_id, forward, self._scheduling, self._poster(key))
        return self._embedders.get(key)

    def _poster(self, key: int) -> PostEvent:
        """Return what takes the events of a model: nothing comes of a sequence that has ended."""

        def post(listener: Listener, event: SequenceEvent) -> None:
            place = (key, event.sequence_id)
            if place in self._running:
                self._post((listener, event))
                if isinstance(event, Finished | Failed):
                    del self._running[place]

        return post

    # Faults

    def _guard(self, key: int, part: Part, sequence_id: int, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:  # noqa: BLE001 mlx-lm refused, and its batch is in an unknown state
            failure = self._fail(key, part, error)
            # It was not in the batch, and nobody would ever speak of it again.
            if (key, sequence_id) in self._running:
                self._begin_anew(key, part, failure)

    def _fail(self, key: int, part: Part, error: BaseException) -> MlxdError:
        """End the batch of a model that has failed; return the error that its sequences got."""
        _log.error("a step of %s failed", part.model_id, exc_info=error)
        failure = generation_failure(part.model_id, error)
        if isinstance(part, Embedder):
            self._begin_anew(key, part, failure)
        else:
            try:
                part.fail_batch(failure)
            except BaseException as second:  # noqa: BLE001 the model's fault
                _log.error("the batch of %s could not be ended", part.model_id, exc_info=second)
                self._begin_anew(key, part, failure)
        error.__traceback__ = None  # its frames hold the batch
        free_or_log()
        return failure

    def _begin_anew(self, key: int, part: Part, error: MlxdError) -> None:
        """End all sequences of a part and replace it: nobody knows what it still holds."""
        if isinstance(part, Embedder):
            self._embedders[key] = Embedder(part.model_id, part.forward, self._scheduling, self._poster(key))
        else:
            limit_bytes = part.prompts.max_bytes
            self._texts[key] = TextModel(part.loaded, limit_bytes, self._scheduling, self._poster(key))
        self._close(part, error)

    def _close(self, part: Part, error: MlxdError) -> None:
        """Close a part whatever happens, and end what it has not ended."""
        model_id = part.model_id
        self._turns.forget(part)
        try:
            part.close(error)
        except BaseException as fault:  # noqa: BLE001 the model's fault
            _log.error("%s could not be closed in order", model_id, exc_info=fault)
            fault.__traceback__ = None
        for place, (owner, listener) in list(self._running.items()):
            if owner is part:
                del self._running[place]
                self._post((listener, Failed(place[1], error)))

    def _change_prompts(self, model: TextModel, change: Callable[[PromptCache], None], limit_bytes: int) -> None:
        try:
            change(model.prompts)
        except BaseException as error:  # noqa: BLE001 the model's fault
            _log.error("the prompt cache of %s failed, and is empty now", model.model_id, exc_info=error)
            model.prompts.clear(limit_bytes)
        mx.clear_cache()

    def _parts(self) -> Iterator[tuple[int, Part]]:
        """Return all that has steps to do; it may be replaced meanwhile."""
        texts, embedders = list(self._texts.items()), list(self._embedders.items())
        yield from texts
        yield from embedders


def free_or_log() -> None:
    """Give back what nothing refers to; what a step in flight raises then has no model of its own any more."""
    try:
        free_memory()
    except BaseException as error:  # noqa: BLE001 the fault of a model that has gone
        _log.error("memory could not be given back", exc_info=error)
        error.__traceback__ = None


def _start(part: Part, command: Start | StartEmbedding) -> None:
    if isinstance(part, Embedder):
        if isinstance(command, StartEmbedding):
            part.start(command)
    elif isinstance(command, Start):
        part.submit(command.submit, command.listener)


def _carry_out(part: Part, command: Grant | Pause | Resume | Cancel) -> None:
    match command:
        case Grant():
            if isinstance(part, TextModel):  # the others do not grow
                part.grant(command.sequence_id, command.kv_tokens)
        case Pause():
            part.pause(command.sequence_id)
        case Resume():
            part.resume(command.sequence_id, command.kv_tokens)
        case Cancel():
            part.cancel(command.sequence_id)
