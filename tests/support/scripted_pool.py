"""A pool whose models say exactly what a test wrote down: for transcripts, and for ends that are rare otherwise."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from mlxd.engine.base import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Prefilling,
    PreparedPrompt,
    TextKind,
    Usage,
)
from mlxd.pool.lease import GenerateEvent, Lease
from mlxd.pool.pool import Pool
from mlxd.pool.status import MemoryStatus, PoolStatus, TokenStatus

# What a generation does next: an event, an error to raise, something to wait for, something to do.
Step = Prefilling | Delta | Finished | BaseException | asyncio.Event | Callable[[], None]

USAGE = Usage(prompt_tokens=7, cached_tokens=3, completion_tokens=2)


def say(*pieces: str, kind: TextKind = TextKind.CONTENT) -> list[Step]:
    """Return the deltas of these pieces."""
    return [Delta(1, piece, kind, number) for number, piece in enumerate(pieces, 1)]


def end(reason: FinishReason = FinishReason.STOP, usage: Usage = USAGE) -> list[Step]:
    """Return the end of a generation."""
    return [Finished(1, reason, usage)]


class ScriptedPool(Pool):
    """Hands out leases on any model; the n-th generation follows the n-th script, and the last one again after that."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self._scripts = list(scripts)
        self.requests: list[GenerationRequest] = []
        self.leased: list[str] = []
        self.active_leases = 0
        self.active_generations = 0
        self.on_lease: list[Step] = []  # done before a lease is given
        self.is_ready = True

    @asynccontextmanager
    async def lease(self, model_id: str, *, request_id: str) -> AsyncIterator[Lease]:
        for step in self.on_lease:
            await _do(step)
        self.leased.append(model_id)
        self.active_leases += 1
        try:
            yield ScriptedLease(self)
        finally:
            self.active_leases -= 1

    def next_script(self) -> Sequence[Step]:
        return self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]

    def status(self) -> PoolStatus:
        return PoolStatus(
            MemoryStatus(*[0] * len(dataclasses.fields(MemoryStatus))),
            None,
            None,
            (),
            (),
            (),
            TokenStatus(0, 0, 0.0),
            draining=False,
        )

    @property
    def queue_length(self) -> int:
        return 0

    @property
    def ready(self) -> bool:
        return self.is_ready


class ScriptedLease(Lease):
    """A lease that follows a script."""

    def __init__(self, pool: ScriptedPool) -> None:
        self._pool = pool

    async def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        self._pool.requests.append(request)
        return PreparedPrompt((1,), 1)

    async def generate(self, request: GenerationRequest, prompt: PreparedPrompt) -> AsyncGenerator[GenerateEvent, None]:
        self._pool.active_generations += 1
        try:
            for step in self._pool.next_script():
                if isinstance(step, Prefilling | Delta | Finished):
                    yield step
                else:
                    await _do(step)
        finally:
            self._pool.active_generations -= 1


async def _do(step: Step) -> None:
    if isinstance(step, BaseException):
        raise step
    if isinstance(step, asyncio.Event):
        await step.wait()
    elif callable(step):
        step()
