"""The age of rows, by a wall clock that ran evenly: one that jumps would delete the whole log."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable

# Between two looks, a minute apart, nothing but a hand or a first look at the network's time moves the clock so far.
JUMP_S = 300.0
# The clock has to go evenly for this long after a jump.
AFTER_JUMP_S = 86_400.0
# And for this long after a start, when the newest row is further away than a day: the clock may be set in a moment.
AFTER_START_S = 3600.0
_SILENCE_S = 86_400.0
_NEWEST = (
    "SELECT max(newest) FROM (SELECT max(started_ms) AS newest FROM requests UNION SELECT max(started_ms) FROM changes)"
)
_log = logging.getLogger(__name__)


def read_steady_s() -> float:
    """Return seconds of a clock that nobody sets and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class AgeClock:
    """The wall clock, as long as it goes with the steady one."""

    def __init__(self, now: Callable[[], float], steady: Callable[[], float]) -> None:
        self._now = now
        self._steady = steady
        self._offset_s: float | None = None
        self._trusted_s = 0.0  # from then on, by the steady clock

    def read_ms(self, connection: sqlite3.Connection) -> int | None:
        """Return unix time; None while nothing may be deleted by it. *connection* has the rows."""
        now_s, steady_s = self._now(), self._steady()
        if self._offset_s is None:
            (newest_ms,) = connection.execute(_NEWEST).fetchone()
            is_long_ago = newest_ms is not None and abs(now_s - newest_ms / 1000) > _SILENCE_S
            self._trusted_s = steady_s + AFTER_START_S if is_long_ago else steady_s
        elif abs(now_s - steady_s - self._offset_s) > JUMP_S:
            self._trusted_s = steady_s + AFTER_JUMP_S
            _log.warning(
                "the clock was set by %+.0f s: for a day no row of the request log is deleted for its age",
                now_s - steady_s - self._offset_s,
            )
        self._offset_s = now_s - steady_s
        return int(now_s * 1000) if steady_s >= self._trusted_s else None
