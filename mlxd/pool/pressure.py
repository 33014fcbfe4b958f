"""React when the system's own memory is short: loads wait, and idle models go.

Owns when that is over, and when the preload list may bring back what went: each time after a longer wait, since the
load may itself be what makes the memory short.
"""

from __future__ import annotations

from collections.abc import Callable

from mlxd.pool.lifecycle import ModelState
from mlxd.pool.loader import Loader
from mlxd.pool.resident import Resident
from mlxd.pool.state import PoolState

# Without a break, what was just freed would be loaded again, and the system be short of memory again, forever.
CALM_S = 10.0
# The longest wait for one that went again and again; one that stayed so long is waited for as if it had never gone.
MOST_RETURN_S = 1800.0


class Pressure:
    """Follows samples of the system's memory; `PoolState.pressure` is the answer."""

    def __init__(self, state: PoolState, loader: Loader, wake_at: Callable[[float], None]) -> None:
        self._state = state
        self._loader = loader
        self._wake_at = wake_at

    def press(self, reason: str) -> None:
        """Take a sample that says *reason*: abort loads, and let unpinned idle models go, preloaded ones last."""
        is_new = self._state.pressure is None
        self._state.pressure = reason
        self._state.pressure_until_s = self._state.clock.now() + CALM_S
        if is_new:
            self._state.emit("pool.pressed", None, f"loads wait and idle models go: {reason}", {"reason": reason})
        staying = [resident for resident in self._state.present if not resident.is_leaving]
        for resident in staying:
            if resident.state is ModelState.LOADING and not resident.is_forced:
                self._loader.abort(resident, reason)
        self._loader.give_back(reason, preloaded=True)
        for resident in staying:
            if resident.is_leaving:
                self._keep_out(resident)

    def look(self) -> None:
        """End it when no sample has confirmed it for a while; be called again when a preload may come back."""
        for resident in self._state.residents.values():
            if self._state.clock.now() < resident.return_s:
                self._wake_at(resident.return_s)
        if self._state.pressure is None:
            return
        if self._state.clock.now() < self._state.pressure_until_s:
            self._wake_at(self._state.pressure_until_s)
            return
        self._state.pressure = None
        self._state.emit("pool.relieved", None, "the system has memory again: loads go on")

    def _keep_out(self, resident: Resident) -> None:
        now = self._state.clock.now()
        if now - resident.load.started_s >= MOST_RETURN_S:
            resident.return_wait_s = 0.0
        resident.return_wait_s = min(max(CALM_S, 2 * resident.return_wait_s), MOST_RETURN_S)
        resident.return_s = now + resident.return_wait_s
