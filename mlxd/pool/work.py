"""Where slow work runs: as tasks of the event loop. A rehearsal has a runner of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Work(Protocol):
    """Runs what the pool begins."""

    def begin(self, work: Coroutine[Any, Any, T], on_end: Callable[[asyncio.Future[T]], None]) -> asyncio.Future[T]:
        """Run *work* and return it; *on_end* gets it when it has ended, in a later turn, also when it was cancelled."""

    def soon(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the events of this pass of the device are all told."""

    def cancel_all(self) -> list[asyncio.Task[Any]]:
        """Cancel what is under way and return it."""


class LoopWork:
    """Work on the running event loop."""

    def __init__(self) -> None:
        """Nothing runs yet."""
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
