"""A clock that moves when the test says so."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True, slots=True)
class FakeTimer:
    """A delayed call of `FakeClock`."""

    when_s: float
    number: int
    callback: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        self.callback = None


class FakeClock:
    """Starts at 1000 s; `run_next` and `advance` run what has come due, in order, with `now` at its moment."""

    def __init__(self) -> None:
        self._now_s = 1000.0
        self._timers: list[FakeTimer] = []
        self._numbers = itertools.count()

    def now(self) -> float:
        return self._now_s

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> FakeTimer:
        timer = FakeTimer(self._now_s + max(0.0, delay_s), next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    @property
    def next_s(self) -> float | None:
        """When the next timer is due; None when there is none."""
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        return self._timers[0].when_s if self._timers else None

    def run_next(self) -> None:
        """Move to the next timer and run it."""
        assert self.next_s is not None
        timer = heapq.heappop(self._timers)
        callback, timer.callback = timer.callback, None
        self._now_s = max(self._now_s, timer.when_s)
        assert callback is not None
        callback()

    def move(self, seconds: float) -> None:
        """Move without running anything; the caller has run what was due."""
        self._now_s += seconds
