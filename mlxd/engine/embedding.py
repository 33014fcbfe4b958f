"""Embedding jobs of one model on the device thread: which texts go next, in turn with all that runs beside them.

A job's texts go through the model longest first, short ones together as far as the pool's grant and the pace of the
device let them, and come back in their order. The jobs of a model take turns slice by slice. What a paused job has
finished is kept; the texts that were on their way begin again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlxd.engine.base import Failed, Finished, FinishReason, Listener, Paused, SchedulingParams, SequenceEvent, Usage
from mlxd.engine.command import StartEmbedding
from mlxd.engine.fault import generation_failure
from mlxd.engine.hidden import Forward, Pass, unit
from mlxd.engine.memory import is_gpu
from mlxd.engine.pace import PrefillPace
from mlxd.engine.vector import Embedded, PreparedInputs
from mlxd.protocol.errors import MlxdError

_log = logging.getLogger(__name__)

# As for prompts: on the CPU a longer slice is no faster, and others wait for it.
_CPU_SLICE_TOKENS = 256
_GPU_SLICE_TOKENS = 2048


@dataclass(slots=True, eq=False)
class _Job:
    sequence_id: int
    listener: Listener
    inputs: PreparedInputs
    kv_tokens: int  # the grant; 0 while it is paused
    waiting: list[int]  # numbers of its texts, the longest last
    vectors: list[bytes]
    on_way: list[int] = field(default_factory=list)
    texts: Pass | None = None  # those of `on_way`

    def take(self, step_tokens: int) -> list[tuple[int, ...]]:
        """Choose the texts that go next: the longest that waits, and others as long as all fit the grant and a slice.

        Memory is held for the texts padded to the longest, so that as many tokens are what one text of the grant takes.
        """
        longest = len(self.inputs.rows[self.waiting[-1]])
        count = max(1, min(self.kv_tokens, step_tokens) // longest)
        self.on_way = self.waiting[-count:]
        return [self.inputs.rows[number] for number in self.on_way]

    def keep(self, vectors: mx.array) -> None:
        """Store what has come of the texts on their way."""
        made = np.array(unit(vectors, self.inputs.dimensions)).astype("<f4")
        for number, vector in zip(self.on_way, made, strict=True):
            self.vectors[number] = vector.tobytes()
        del self.waiting[-len(self.on_way) :]
        self.on_way, self.texts = [], None

    def drop(self) -> None:
        """Let the texts on their way begin again later."""
        self.on_way, self.texts = [], None


class Embedder:
    """The jobs of one model; events go to *post*."""

    def __init__(
        self,
        model_id: str,
        forward: Forward,
        scheduling: SchedulingParams,
        post: Callable[[Listener, SequenceEvent], None],
    ) -> None:
        self.model_id = model_id
        self.forward = forward
        self._post = post
        self._slice_tokens = _GPU_SLICE_TOKENS if is_gpu() else _CPU_SLICE_TOKENS
        self._pace = PrefillPace(scheduling, self._slice_tokens)
        self._jobs: dict[int, _Job] = {}  # that run, in the order of their turns
        self._paused: dict[int, _Job] = {}

    @property
    def is_busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._jobs)

    def set_scheduling(self, params: SchedulingParams) -> None:
        """Change the pace."""
        self._pace.change(params)

    def start(self, command: StartEmbedding) -> None:
        """Begin a job."""
        rows = command.inputs.rows
        self._jobs[command.sequence_id] = _Job(
            command.sequence_id,
            command.listener,
            command.inputs,
            command.kv_tokens,
            sorted(range(len(rows)), key=lambda number: len(rows[number])),
            [b""] * len(rows),
        )

    def cancel(self, sequence_id: int) -> None:
        """End a job."""
        self._end(self._take_out(sequence_id), FinishReason.CANCELLED)

    def pause(self, sequence_id: int) -> None:
        """Give the memory of a job back."""
        job = self._jobs.pop(sequence_id, None)
        if job is not None:
            job.drop()
            job.kv_tokens = 0
            self._paused[sequence_id] = job
            self._post(job.listener, Paused(sequence_id, job.inputs.prefill_tokens))

    def resume(self, sequence_id: int, kv_tokens: int) -> None:
        """Go on with a paused job."""
        job = self._paused.pop(sequence_id, None)
        if job is not None:
            job.kv_tokens = kv_tokens
            self._jobs[sequence_id] = job

    def step(self, *, others_decode: bool) -> None:
        """Do one slice of the job whose turn it is."""
        sequence_id, job = next(iter(self._jobs.items()))
        del self._jobs[sequence_id]
        try:
            self._advance(job, others_decode=others_decode)
        except Exception as error:  # noqa: BLE001 the engine's edge: anything that MLX or a model raises
            _log.error("embedding %d of %s failed", sequence_id, self.model_id, exc_info=error)
            self._post(job.listener, Failed(sequence_id, generation_failure(self.model_id, error)))
            job.drop()
            error.__traceback__ = None  # its frames hold arrays
            return
        if job.waiting:
            self._jobs[sequence_id] = job
        else:
            self._post(job.listener, Embedded(sequence_id, tuple(job.vectors)))
            self._end(job, FinishReason.STOP)

    def close(self, error: MlxdError) -> None:
        """End all jobs with *error* and let go of the model."""
        for job in (*self._jobs.values(), *self._paused.values()):
            self._post(job.listener, Failed(job.sequence_id, error))
        self.__dict__.clear()

    def _advance(self, job: _Job, *, others_decode: bool) -> None:
        step_tokens = self._pace.step_tokens([self._slice_tokens], others_decode=others_decode)
        if job.texts is None:
            job.texts = self.forward.begin(job.take(step_tokens), step_tokens)
        started_s = time.perf_counter()
        tokens = job.texts.advance(step_tokens, others_decode=others_decode)
        if tokens >= step_tokens:
            self._pace.record_prefill(tokens, time.perf_counter() - started_s, decoding=False)
        if job.texts.is_done:
            job.keep(job.texts.pooled())

    def _take_out(self, sequence_id: int) -> _Job:
        return self._jobs.pop(sequence_id) if sequence_id in self._jobs else self._paused.pop(sequence_id)

    def _end(self, job: _Job, reason: FinishReason) -> None:
        job.drop()
        self._post(job.listener, Finished(job.sequence_id, reason, Usage(job.inputs.total_tokens, 0, 0)))
