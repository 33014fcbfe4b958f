"""The event bus: everything that happens, numbered, to subscribers that may be slow.

A publisher never waits. Each subscriber has a bounded queue; when it overflows, the subscriber is told which numbers it
missed. Nothing is lost silently. Who asks for some events only sees numbers that are not consecutive: that is no loss,
as a loss is always told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.protocol.event import Event, Gap, Interest

QUEUE_LENGTH = 1024


class Subscription:
    """One subscriber's queue."""

    def __init__(self, length: int, interest: Interest) -> None:
        """Made by `Bus.subscribe` only."""
        self._length = length
        self._interest = interest
        self._queue: deque[Event | Gap] = deque()
        self._filled = asyncio.Event()

    def put(self, event: Event) -> None:
        """Queue the event if it is wanted, or widen the gap."""
        if not self._interest.includes(event):
            return
        last = self._queue[-1] if self._queue else None
        if len(self._queue) < self._length:
            self._queue.append(event)
        elif isinstance(last, Gap):
            self._queue[-1] = Gap(last.first, event.seq)
        else:
            self._queue.append(Gap(event.seq, event.seq))
        self._filled.set()

    async def next(self) -> Event | Gap:
        """Return what comes next, when it comes."""
        await self._filled.wait()
        item = self._queue.popleft()
        if not self._queue:
            self._filled.clear()
        return item


_ALL = Interest()


class Bus:
    """Numbers events and hands them on."""

    def __init__(self, queue_length: int = QUEUE_LENGTH) -> None:
        """Take how many events a subscriber may be behind."""
        self._queue_length = queue_length
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[Event], None]] = []
        self.seq = 0

    def publish(self, kind: str, data: Mapping[str, Any]) -> None:
        """Hand an event to all."""
        self.seq += 1
        event = Event(self.seq, kind, data)
        for listener in self._listeners:
            listener(event)
        for subscription in self._subscriptions:
            subscription.put(event)

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call *listener* with every event, at once."""
        self._listeners.append(listener)

    def subscribe(self, interest: Interest = _ALL) -> Subscription:
        """Return a queue of the events after `seq` that are of *interest*."""
        subscription = Subscription(self._queue_length, interest)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Give the queue up."""
        self._subscriptions.discard(subscription)
