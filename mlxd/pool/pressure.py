"""What the pool does while the system's own memory is short: loads wait, and idle models go. Owns when that is over."""

from __future__ import annotations

from collections.abc import Callable

from mlxd.pool.mover import Mover
from mlxd.pool.resident import ModelState
from mlxd.pool.state import PoolState

# Without a break, what was just freed would be loaded again, and the system be short of memory again, for ever.
CALM_S = 10.0


class Pressure:
    """Follows samples of the system's memory; `PoolState.pressure` is the answer."""

    def __init__(self, state: PoolState, mover: Mover, wake_at: Callable[[float], None]) -> None:
        """Take the state, what moves models out, and how to be called again at a later time."""
        self._state = state
        self._mover = mover
        self._wake_at = wake_at

    def press(self, reason: str) -> None:
        """Take a sample that says *reason*: abort loads, and let unpinned idle models go, preloaded ones last."""
        is_new = self._state.pressure is None
        self._state.pressure = reason
        self._state.pressure_until_s = self._state.clock.now() + CALM_S
        if is_new:
            self._state.emit("pool.pressed", None, f"loads wait and idle models go: {reason}", {"reason": reason})
        for resident in self._state.present:
            if resident.state is ModelState.LOADING and not resident.is_forced:
                self._mover.abort(resident, reason)
        self._mover.give_back(reason, preloaded=True)

    def look(self) -> None:
        """End it when no sample has confirmed it for a while."""
        if self._state.pressure is None:
            return
        if self._state.clock.now() < self._state.pressure_until_s:
            self._wake_at(self._state.pressure_until_s)
            return
        self._state.pressure = None
        self._state.emit("pool.relieved", None, "the system has memory again: loads go on")
