"""Waiting for the pool to become something: conditions that are looked at after every pump."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial

from mlxd.clock import Clock

Condition = Callable[[], bool]


class Watch:
    """Tasks that wait for a condition."""

    def __init__(self, clock: Clock) -> None:
        """Take the source of time."""
        self._clock = clock
        self._waiting: list[tuple[Condition, asyncio.Future[None]]] = []

    def look(self) -> None:
        """Wake the tasks whose condition holds now; a condition that fails is told to the task that waits for it."""
        for is_true, future in list(self._waiting):
            try:
                holds = is_true()
            except Exception as error:  # noqa: BLE001 whoever pumps, and all others that wait, have no part in it
                if not future.done():
                    future.set_exception(error)
            else:
                if holds:
                    _wake(future)

    async def wait_until(self, is_true: Condition, timeout_s: float = math.inf) -> bool:
        """Wait until the condition holds, at most *timeout_s*; return whether it does."""
        if is_true():
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (is_true, future)
        timer = None if math.isinf(timeout_s) else self._clock.call_later(timeout_s, partial(_wake, future))
        self._waiting.append(waiting)
        try:
            await future
        finally:
            self._waiting.remove(waiting)
            if timer is not None:
                timer.cancel()
        return is_true()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
