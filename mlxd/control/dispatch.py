"""Leads a `req` frame to its handler, and lets changes in one at a time.

Mutations are made in the order of their arrival, and each once, however often its client has to ask. One that waits for
its turn is dropped when nobody waits for its answer; one that has begun is finished, whatever becomes of its
client. The answers to the last ones that carried an idempotency key are kept, so that a client whose connection broke
before the answer asks again with the same key and gets it, without a second change.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgpack

from mlxd.control.connection import Answer, Progress
from mlxd.control.context import ControlContext, Reply, Request
from mlxd.control.handlers import HANDLERS
from mlxd.control.listen import Peer
from mlxd.control.relay import note_operation
from mlxd.protocol.errors import Conflict, Draining, InvalidRequest, WaitEnded
from mlxd.protocol.operation import Operation, check_params
from mlxd.protocol.operations import find_operation

KEPT_ANSWERS = 256
_LONGEST_KEY = 128
# Keys of the frame that do not make it another request.
_ABOUT_THE_ASKING = frozenset({"t", "id", "idem", "deadline_ms"})


Work = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Once:
    """An idempotency key, and a fingerprint of the request that it stands for."""

    key: str
    fingerprint: bytes


@dataclass(slots=True)
class _Mutation:
    once: Once | None
    secrets: frozenset[str]
    is_begun: bool = False
    waiters: int = 0
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
        mutation = None if once is None else self._kept.get(once.key)
        if mutation is None:
            mutation = _Mutation(once, secrets)
            mutation.task = asyncio.get_running_loop().create_task(
                self._run(mutation, work, deadline_s, at_once=at_once)
            )
            mutation.task.add_done_callback(partial(self._on_done, mutation))
            if once is not None:
                self._kept[once.key] = mutation
                ended = [key for key, kept in self._kept.items() if kept.task.done()]
                for key in ended[:-KEPT_ANSWERS]:
                    del self._kept[key]
        elif mutation.once != once:
            raise Conflict(
                "this idempotency key was used for another request; nothing was changed",
                code="idem.conflict",
                hint="a key of its own for each request",
                param="idem",
            )
        mutation.waiters += 1
        try:
            return await asyncio.shield(mutation.task)
        finally:
            mutation.waiters -= 1
            if not mutation.waiters and not mutation.is_begun:
                self._forget(mutation)
                mutation.task.cancel()

    async def close(self) -> None:
        """Refuse new ones, and return when all that have begun have ended."""
        self._is_closed = True
        await asyncio.gather(*self._begun, return_exceptions=True)

    async def _run(
        self, mutation: _Mutation, work: Work, deadline_s: float | None, *, at_once: bool
    ) -> Mapping[str, Any]:
        if not at_once:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._turn.acquire()
            except TimeoutError:
                self._forget(mutation)
                raise WaitEnded(
                    f"its turn behind other changes did not come within {deadline_s:g} s; nothing was changed"
                ) from None
        try:
            if self._is_closed:
                raise Draining("the daemon ends; nothing was changed", hint="mlxctl start")
            mutation.is_begun = True
            self._begun.add(mutation.task)
            return await work()
        finally:
            if not at_once:
                self._turn.release()

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


class Dispatcher:
    """Runs requests: questions at once, mutations in turn."""

    def __init__(self, context: ControlContext) -> None:
        """Take what the operations work on."""
        self.mutations = Mutations(context.store.turn)
        self._context = context

    async def dispatch(self, frame: Mapping[str, Any], progress: Progress, peer: Peer) -> Answer:
        """Return the result of a `req` frame and the names of params that the operation does not have.

        Raises:
            MlxdError: refused, failed, or too late.
        """
        operation = find_operation(frame.get("m"))
        params, ignored = check_params(operation, frame.get("p", {}))
        request = Request(
            operation.name,
            params,
            dry=_flag(frame, "dry", default=False),
            if_gen=_count(frame, "if_gen"),
            force=bool(params.get("force", False)),
            persist=_flag(frame, "persist", default=True),
            progress=progress,
            peer=peer,
        )
        if request.dry and not operation.can_be_dry:
            raise InvalidRequest(f"{operation.name} has no dry run", param="dry")
        if request.if_gen is not None and not operation.mutates:
            raise InvalidRequest(f"{operation.name} changes nothing: it takes no if_gen", param="if_gen")
        if not request.persist and not operation.can_be_runtime_only:
            raise InvalidRequest(f"{operation.name} cannot be runtime-only", param="persist")
        deadline_ms = _count(frame, "deadline_ms")
        deadline_s = None if deadline_ms is None else deadline_ms / 1000
        if not operation.mutates:
            return await self._ask(operation, request, deadline_s), ignored
        work = partial(self._change, operation, request)
        once = _once(frame)
        answer = await self.mutations.run(
            work, once=once, deadline_s=deadline_s, at_once=operation.at_once, secrets=operation.secrets
        )
        return answer, ignored

    async def _ask(self, operation: Operation, request: Request, deadline_s: float | None) -> Reply:
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                return await HANDLERS[operation.name](self._context, request)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise WaitEnded(f"{operation.name} was not answered within {deadline_s:g} s") from None

    async def _change(self, operation: Operation, request: Request) -> Reply:
        # A commit compares for itself, after it has applied an edit of the file by hand.
        if not operation.commits:
            self._context.store.require(request.if_gen)
        reply = await HANDLERS[operation.name](self._context, request)
        if not operation.commits and not request.dry:
            note_operation(self._context.audit, operation, request, self._context.store.generation)
        return reply


def _once(frame: Mapping[str, Any]) -> Once | None:
    key = frame.get("idem")
    if key is None:
        return None
    if not isinstance(key, str) or not 1 <= len(key) <= _LONGEST_KEY:
        raise InvalidRequest(f"idem must be a text of 1 to {_LONGEST_KEY} characters", param="idem")
    asked = sorted((name, value) for name, value in frame.items() if name not in _ABOUT_THE_ASKING)
    return Once(key, hashlib.sha256(msgpack.packb(asked)).digest())


def _flag(frame: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = frame.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value


def _count(frame: Mapping[str, Any], name: str) -> int | None:
    value = frame.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InvalidRequest(f"{name} must be a whole number of at least 0", param=name)
    return value
