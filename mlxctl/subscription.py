"""A subscription: a snapshot, then events in order, and a gap where some were lost. See `Client.subscribe`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlxctl.connect import connection_error
from mlxd.protocol.event import Event, Gap, Interest


class Subscription:
    """One subscription of a connection.

    Attributes:
        snapshot: {gen, pool, requests, operations} at the moment it began.
        seq: the number of the last event that the snapshot knows of.
    """

    def __init__(self, pump: Callable[[float | None], bool], cancel: Callable[[], None]) -> None:
        """Take what reads one more frame of the connection, and what ends this subscription."""
        self.snapshot: dict[str, Any] = {}
        self.seq = 0
        self._pump = pump
        self._cancel = cancel
        self._items: deque[Event | Gap] = deque()
        self._reason: str | None = None
        self._interest: Interest | None = None

    def begin(self, result: Mapping[str, Any], topics: Sequence[str] | None, model: str | None) -> None:
        """Take the daemon's answer; *topics* and *model* are what an older daemon cannot choose for us."""
        self.snapshot, self.seq = dict(result.get("snapshot") or {}), int(result.get("seq", 0))
        self._interest = Interest(None if topics is None else frozenset(topics), model)
        self._items = deque(item for item in self._items if self._is_wanted(item))

    def take(self, frame: Mapping[str, Any]) -> None:
        """Keep what a frame says until somebody asks."""
        item: Event | Gap
        if frame["t"] == "end":
            self._reason = str(frame.get("reason"))
            return
        if frame["t"] == "gap":
            item = Gap(frame["from"], frame["to"])
        elif frame["t"] == "evt":
            item = Event(frame["seq"], frame["k"], frame.get("d") or {})
        else:
            return
        if self._is_wanted(item):
            self._items.append(item)

    def next(self, timeout_s: float | None = None) -> Event | Gap | None:
        """Return what comes next, None when nothing has come within *timeout_s*; without it, wait forever.

        Raises:
            ControlError: the daemon ended it, with the reason, or the connection.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._items:
            if self._reason is not None:
                raise connection_error("control.ended", reason=self._reason)
            if not self._pump(deadline_s):
                return None
        return self._items.popleft()

    def __iter__(self) -> Iterator[Event | Gap]:
        while (item := self.next()) is not None:
            yield item

    def close(self) -> None:
        """End it; the connection goes on."""
        self._cancel()

    def _is_wanted(self, item: Event | Gap) -> bool:
        return self._interest is None or isinstance(item, Gap) or self._interest.includes(item)
