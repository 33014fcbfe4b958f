"""The way to the device thread: a queue of commands, and a future on the event loop for each that is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from mlxd.engine.command import Close, Command, Reply
from mlxd.protocol.errors import Draining, MlxdError


class Inbox:
    """Commands in the order they were put; after `close` it takes no more."""

    def __init__(self) -> None:
        """Begin empty."""
        self._queue: SimpleQueue[Command] = SimpleQueue()
        self._open = True

    def put(self, command: Command) -> None:
        """Post *command*; dropped after `close`, which ends all that a command could be about."""
        if self._open:
            self._queue.put(command)

    async def ask(self, make: Callable[[Reply], Command]) -> Any:
        """Put the command that *make* returns for a reply, and wait for the answer.

        Raises:
            MlxdError: the answer was an error.
            Draining: the inbox is closed.
        """
        if not self._open:
            raise Draining("the device is shut down")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def resolve(value: Any) -> None:
            if answer.done():  # the caller was cancelled
                return
            if isinstance(value, MlxdError):
                answer.set_exception(value)
            else:
                answer.set_result(value)

        self._queue.put(make(resolve))
        return await answer

    def close(self) -> None:
        """Put `Close`, once, and take no more commands."""
        if self._open:
            self._open = False
            self._queue.put(Close())

    # The device thread's side

    def get(self) -> Command:
        """Return the next command; waits for one without polling. After `Close` there is nothing but `Close`."""
        command = self._queue.get()
        if isinstance(command, Close):
            self._queue.put(command)
        return command

    def is_empty(self) -> bool:
        """Whether `get` would wait."""
        return self._queue.empty()
