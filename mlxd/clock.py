"""The source of time on the event loop: one protocol, so that tests move time by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that was put off."""

    def cancel(self) -> None:
        """Take it back; nothing happens when it ran already."""


class Clock(Protocol):
    """Monotonic seconds and delayed calls on the event loop."""

    def now(self) -> float:
        """Return seconds since some fixed moment."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* on the event loop after *delay_s*."""


class LoopClock:
    """The clock of a running event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        """Return the loop's monotonic time."""
        return self._loop.time()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* after *delay_s*."""
        return self._loop.call_later(delay_s, callback)


def now_ms() -> int:
    """Return unix time, for records that people read."""
    return int(time.time() * 1000)
