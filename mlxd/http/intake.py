"""Large request bodies in memory: how many bytes of them there may be together, and whose turn it is to be parsed.

Owns the sum and the waiting. A small body is not counted: `http.max_connections` bounds how many there are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from mlxd.clock import Clock
from mlxd.protocol.errors import TooManyBodies
from mlxd.protocol.units import format_bytes

# Long conversations of agents are smaller; it is parsed within two milliseconds, whatever it holds.
SMALL_BYTES = 256 * 1024
_RETRY_AFTER_S = 5
# Of parsing, before others are let in.
_STEP_S = 0.001

T = TypeVar("T")


class Intake:
    """The large bodies of all requests."""

    def __init__(self, limit_bytes: Callable[[], int], clock: Clock) -> None:
        """Take the limit in force, `http.bodies_memory`."""
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._held_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._parsing = asyncio.Lock()

    @property
    def held_bytes(self) -> int:
        """The bytes of all bodies that have a place."""
        return self._held_bytes

    @property
    def waiting(self) -> int:
        """How many bodies wait for a place; their clients send nothing meanwhile."""
        return len(self._waiting)

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Give a request a place of no bytes, to be claimed; it ends with the request."""
        place = Place(self)
        try:
            yield place
        finally:
            place.resize(0)

    async def run(self, steps: Generator[None, None, T]) -> T:
        """Return what *steps* return, run when it is their turn, with everything else in between.

        The loop sleeps for as long as each millisecond of steps took. It must not just look for events and go on: it
        lets go of the interpreter meanwhile, so that no thread waits for it long enough to demand it, and takes it
        again before another thread is awake.
        """
        async with self._parsing:
            try:
                while True:
                    began_s = self._clock.now()
                    while (took_s := self._clock.now() - began_s) < _STEP_S:
                        next(steps)
                    await asyncio.sleep(took_s)
            except StopIteration as end:
                result: T = end.value
            return result

    def pump(self) -> None:
        """Let in who fits, in the order of arrival; also to be called when the limit has changed."""
        while self._waiting and (self._waiting[0][1].done() or self._has_room(self._waiting[0][0])):
            n_bytes, granted = self._waiting.popleft()
            if not granted.done():
                self._held_bytes += n_bytes
                granted.set_result(None)

    async def _claim(self, n_bytes: int, timeout_s: float) -> None:
        if not self._waiting and self._has_room(n_bytes):
            self._held_bytes += n_bytes
            return
        granted = asyncio.get_running_loop().create_future()
        self._waiting.append((n_bytes, granted))
        try:
            async with asyncio.timeout(timeout_s):
                await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled():
                self._release(n_bytes)
            else:
                granted.cancel()
                self.pump()
            if isinstance(error, TimeoutError):
                raise self._full(timeout_s) from None
            raise

    def _has_room(self, n_bytes: int) -> bool:
        """Tell whether it fits; one alone always does, whatever the limit is."""
        return self._held_bytes == 0 or self._held_bytes + n_bytes <= self._limit_bytes()

    def _release(self, n_bytes: int) -> None:
        self._held_bytes -= n_bytes
        self.pump()

    def _full(self, timeout_s: float) -> TooManyBodies:
        return TooManyBodies(
            f"the bodies of other requests take {format_bytes(self._held_bytes)} of the"
            f" {format_bytes(self._limit_bytes())} that all may have, and none has ended within {timeout_s:g} s",
            hint="mlxctl config set http.bodies_memory=SIZE",
            retry_after_s=_RETRY_AFTER_S,
        )


class Place:
    """What one request's body has of the intake's bytes."""

    def __init__(self, intake: Intake) -> None:
        """Made by `Intake.place` only."""
        self._intake = intake
        self._n_bytes = 0

    async def claim(self, n_bytes: int, timeout_s: float) -> None:
        """Wait for so many bytes; called once.

        Raises:
            TooManyBodies: there was no room for so long.
        """
        await self._intake._claim(n_bytes, timeout_s)  # noqa: SLF001  (two halves of one module)
        self._n_bytes = n_bytes

    def resize(self, n_bytes: int) -> None:
        """Give back what is over *n_bytes*."""
        over, self._n_bytes = self._n_bytes - n_bytes, n_bytes
        if over:
            self._intake._release(over)  # noqa: SLF001
