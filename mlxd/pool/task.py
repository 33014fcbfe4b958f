"""The pool's tasks: slow work on the event loop, and waits for a condition. A rehearsal runs its work itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

from mlxd.clock import Clock

Condition = Callable[[], bool]
T = TypeVar("T")


class Tasks(Protocol):
    """Runs what the pool begins."""

    def begin(self, work: Coroutine[Any, Any, T], on_end: Callable[[asyncio.Future[T]], None]) -> asyncio.Future[T]:
        """Run *work* and return it; *on_end* gets it when it has ended, in a later turn, also when it was cancelled."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the events of this pass of the device are all told."""

    def cancel_all(self) -> list[asyncio.Task[Any]]:
        """Cancel what is under way and return it."""


class LoopTasks:
    """Tasks of the running event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T], on_end: Callable[[asyncio.Future[T]], None]) -> asyncio.Future[T]:
        """Run *work* as a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(on_end)
        return task

    def soon(self, callback: Callable[[], None]) -> None:
        """Call it in the loop's next turn."""
        asyncio.get_running_loop().call_soon(callback)

    def cancel_all(self) -> list[asyncio.Task[Any]]:
        """Cancel the tasks."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        return tasks


class Conditions:
    """Tasks that wait for a condition; each is looked at after every pump."""

    def __init__(self, clock: Clock) -> None:
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
