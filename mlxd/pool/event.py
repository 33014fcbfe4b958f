"""Events as they happen: of the pool, for the log and subscribers, and of a sequence, for its reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxd.engine.base import SequenceEvent
from mlxd.protocol.errors import MlxdError


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something happened to a model or to the pool.

    `kind` is one of model.loading, model.context_cut, model.load_progress, model.loaded, model.load_retried,
    model.load_failed, model.load_aborted, model.draining, model.evicting, model.unloaded, sequence.paused,
    sequence.resumed, sequence.retried, queue.joined, queue.left, pool.over_limit, pool.within_limit, pool.pressed,
    pool.relieved.
    `message` is the log line; it is empty for what is too frequent for a log (model.load_progress, queue.*).
    `data` holds plain values for subscribers. Listeners are called in the middle of a transition: they must not raise,
    and may look at nothing but the event.
    """

    kind: str
    model_id: str | None
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


OnEvent = Callable[[PoolEvent], None]


class EventBuffer:
    """What a sequence's reader has not taken yet; one reader."""

    def __init__(self) -> None:
        self._items: deque[SequenceEvent | MlxdError] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: SequenceEvent | MlxdError) -> None:
        """Add an event, or the error to end with."""
        self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> SequenceEvent:
        """Return the next event, or raise the error."""
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        item = self._items.popleft()
        if isinstance(item, MlxdError):
            raise item
        return item


def copy_error(error: MlxdError) -> MlxdError:
    """Return an equal error: one instance raised in several tasks would gather all their tracebacks."""
    return type(error)(
        error.message,
        hint=error.hint,
        param=error.param,
        code=error.code,
        retry_after_s=error.retry_after_s,
        data=dict(error.data),
    )
