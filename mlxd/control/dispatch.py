"""From a `req` frame to its handler: what the frame may hold is checked here, by the table of operations."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgpack

from mlxd.control.connection import Answer, Progress
from mlxd.control.context import ControlContext, Reply, Request
from mlxd.control.handlers import HANDLERS
from mlxd.control.listen import Peer
from mlxd.control.mutation import Mutations, Once
from mlxd.control.trail import note_operation
from mlxd.protocol.errors import InvalidRequest, WaitEnded
from mlxd.protocol.operation import Operation, check_params
from mlxd.protocol.operations import find_operation

_LONGEST_KEY = 128
# Keys of the frame that do not make it another request.
_ABOUT_THE_ASKING = frozenset({"t", "id", "idem", "deadline_ms"})


class Dispatcher:
    """Runs requests: questions at once, mutations as `mutation.py` says."""

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
        # A commit compares for itself, when it has taken up what was written into the file by hand.
        if not operation.commits:
            self._context.store.require(request.if_gen)
        reply = await HANDLERS[operation.name](self._context, request)
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
