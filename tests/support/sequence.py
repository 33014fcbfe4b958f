"""Starts sequences on an engine and records their events; for the fake engine and the real one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mlxd.engine.base import (
    Delta,
    Engine,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    KvLow,
    Paused,
    Prefilling,
    PreparedPrompt,
    SamplingParams,
    SequenceEvent,
    Submit,
    TextKind,
    TextPrompt,
    Usage,
)
from mlxd.engine.vector import Embedded, PreparedInputs
from mlxd.protocol.errors import MlxdError

T = TypeVar("T")
GREEDY = SamplingParams(temperature=0)
_ids = itertools.count(1)


class Recorder:
    """The listener of one sequence."""

    def __init__(self, sequence_id: int) -> None:
        self.sequence_id = sequence_id
        self.events: list[SequenceEvent] = []
        self.on_event: Callable[[SequenceEvent], None] = lambda event: None
        self._news = asyncio.Event()

    def __call__(self, event: SequenceEvent) -> None:
        assert event.sequence_id == self.sequence_id
        self.events.append(event)
        self._news.set()
        self.on_event(event)

    def of(self, kind: type[T]) -> list[T]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | Failed)

    @property
    def deltas(self) -> list[Delta]:
        return self.of(Delta)

    @property
    def pauses(self) -> list[Paused]:
        return self.of(Paused)

    @property
    def lows(self) -> list[KvLow]:
        return self.of(KvLow)

    @property
    def prefills(self) -> list[Prefilling]:
        return self.of(Prefilling)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors that were asked for, a row for each text."""
        (embedded,) = self.of(Embedded)
        return np.array([np.frombuffer(vector, "<f4") for vector in embedded.vectors])

    def text(self, kind: TextKind = TextKind.CONTENT) -> str:
        return "".join(delta.text for delta in self.deltas if delta.kind is kind)

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def reason(self) -> FinishReason:
        return self.finished.reason

    @property
    def usage(self) -> Usage:
        return self.finished.usage

    @property
    def error(self) -> MlxdError:
        last = self.events[-1]
        assert isinstance(last, Failed), last
        return last.error

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds; it is looked at after each event."""
        while not condition():
            assert not self.has_ended, self.events[-1]
            self._news.clear()
            await self._news.wait()

    async def ended(self) -> Recorder:
        """Wait for the end."""
        while not self.has_ended:
            self._news.clear()
            await self._news.wait()
        return self


def start(
    engine: Engine,
    prompt: PreparedPrompt,
    sampling: SamplingParams = GREEDY,
    *,
    stop: tuple[str, ...] = (),
    kv_tokens: int | None = None,
    logprobs: int | None = None,
    scores_prompt: bool = False,
    checkpoint_bytes: int = 0,
) -> Recorder:
    """Start a sequence; without *kv_tokens* its grant holds all of it."""
    recorder = Recorder(next(_ids))
    if kv_tokens is None:
        kv_tokens = len(prompt.tokens) + prompt.max_tokens
    submit = Submit(
        recorder.sequence_id,
        prompt,
        sampling,
        stop,
        kv_tokens,
        logprobs,
        scores_prompt,
        checkpoint_bytes=checkpoint_bytes,
    )
    engine.submit(submit, recorder)
    return recorder


def embed(engine: Engine, inputs: PreparedInputs) -> Recorder:
    """Begin to make vectors, with all the memory that they may need."""
    recorder = Recorder(next(_ids))
    engine.embed(recorder.sequence_id, inputs, inputs.final_tokens, recorder)
    return recorder


async def prepare(engine: Engine, text: str = "Once upon a time", max_tokens: int | None = 20) -> PreparedPrompt:
    """Prepare a plain prompt."""
    return await engine.prepare(GenerationRequest(TextPrompt(text), max_tokens=max_tokens))
