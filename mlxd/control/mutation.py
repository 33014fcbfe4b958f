"""Mutations: one at a time in the order of their arrival, and each once, however often its client has to ask.

One that waits for its turn is dropped when nobody waits for its answer any more; one that has begun is finished,
whatever becomes of its client. The answers to the last ones that carried an idempotency key are kept, so that a client
whose connection broke before the answer asks again with the same key and gets it, without a second change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mlxd.protocol.errors import Conflict, Draining, WaitEnded

KEPT_ANSWERS = 256

Work = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Once:
    """An idempotency key, and a fingerprint of the request that it stands for."""

    key: str
    fingerprint: bytes


@dataclass(slots=True)
class _Mutation:
    once: Once | None
    is_begun: bool = False
    waiters: int = 0
    secrets: frozenset[str] = frozenset()
    # The work; once it is done and has secrets, the answer without them.
    task: asyncio.Future[Mapping[str, Any]] = field(init=False)


class Mutations:
    """All mutations that wait or run, and the answers that are kept."""

    def __init__(self, turn: asyncio.Lock) -> None:
        """Take the turn that whoever changes settings has to have."""
        self._is_closed = False
        self._turn = turn
        self._begun: set[asyncio.Future[Mapping[str, Any]]] = set()
        self._kept: dict[str, _Mutation] = {}

    async def run(
        self,
        work: Work,
        *,
        once: Once | None = None,
        deadline_s: float | None = None,
        at_once: bool = False,
        secrets: frozenset[str] = frozenset(),
    ) -> Mapping[str, Any]:
        """Return what *work* returns, when its turn has come; or what it returned when its key was used before.

        Args:
            work: makes the change.
            once: the key, where the client gave one.
            deadline_s: longest wait for its turn.
            at_once: it needs no turn.
            secrets: keys of the answer that are not kept: who asks again later gets it without them.

        Raises:
            Conflict: the key stands for another request.
            WaitEnded: its turn did not come in time; nothing was changed.
            Draining: the daemon ends first.
        """
        mutation = self._find(once)
        if mutation is None:
            mutation = self._start(work, once, deadline_s, at_once=at_once)
            mutation.secrets = secrets
        mutation.waiters += 1
        try:
            return await asyncio.shield(mutation.task)
        finally:
            mutation.waiters -= 1
            if not mutation.waiters and not mutation.is_begun:
                self._forget(mutation)
                mutation.task.cancel()

    async def close(self) -> None:
        """Begin nothing any more, and return when all that have begun have ended."""
        self._is_closed = True
        await asyncio.gather(*self._begun, return_exceptions=True)

    def _find(self, once: Once | None) -> _Mutation | None:
        mutation = None if once is None else self._kept.get(once.key)
        if mutation is not None and mutation.once != once:
            raise Conflict(
                "this idempotency key was used for another request; nothing was changed",
                code="idem.conflict",
                hint="a key of its own for each request",
                param="idem",
            )
        return mutation

    def _start(self, work: Work, once: Once | None, deadline_s: float | None, *, at_once: bool) -> _Mutation:
        mutation = _Mutation(once)
        mutation.task = asyncio.get_running_loop().create_task(
            self._run_now(mutation, work) if at_once else self._run_in_turn(mutation, work, deadline_s)
        )
        mutation.task.add_done_callback(partial(self._on_done, mutation))
        if once is not None:
            self._kept[once.key] = mutation
            ended = [key for key, kept in self._kept.items() if kept.task.done()]
            for key in ended[:-KEPT_ANSWERS]:
                del self._kept[key]
        return mutation

    async def _run_in_turn(self, mutation: _Mutation, work: Work, deadline_s: float | None) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(deadline_s):
                await self._turn.acquire()
        except TimeoutError:
            self._forget(mutation)
            raise WaitEnded(
                f"its turn behind other changes did not come within {deadline_s:g} s; nothing was changed"
            ) from None
        try:
            return await self._run_now(mutation, work)
        finally:
            self._turn.release()

    async def _run_now(self, mutation: _Mutation, work: Work) -> Mapping[str, Any]:
        if self._is_closed:
            raise Draining("the daemon ends; nothing was changed", hint="mlxctl start")
        mutation.is_begun = True
        self._begun.add(mutation.task)
        return await work()

    def _forget(self, mutation: _Mutation) -> None:
        if mutation.once is not None and self._kept.get(mutation.once.key) is mutation:
            del self._kept[mutation.once.key]

    def _on_done(self, mutation: _Mutation, task: asyncio.Future[Mapping[str, Any]]) -> None:
        self._begun.discard(task)
        if task.cancelled() or task.exception() is not None:  # which nobody may have waited for
            return
        if mutation.secrets:
            kept = {name: value for name, value in task.result().items() if name not in mutation.secrets}
            mutation.task = asyncio.get_running_loop().create_future()
            mutation.task.set_result(kept)
