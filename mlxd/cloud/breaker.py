"""Circuit breakers: a target that keeps failing is left alone for a while. Owns their state; knows no HTTP.

One per (provider, model), kept over edits of rules. Closed until at least 5 of the last minute's attempts, and half of
them, have failed; then open for 30 s, and twice as long each time, at most 5 min, after which one attempt may try.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

WINDOW_S = 60.0
LEAST_FAILURES = 5
FAILING_SHARE = 0.5
FIRST_OPEN_S = 30.0
MOST_OPEN_S = 300.0


class BreakerState(Enum):
    """Whether a target is asked."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"  # one attempt is under way, or may begin


@dataclass(slots=True)
class _Breaker:
    """The record of one target."""

    results: deque[tuple[float, bool]] = field(default_factory=deque)  # (when, failed), oldest first
    open_until_s: float | None = None
    open_s: float = FIRST_OPEN_S  # of the next opening
    is_probing: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """One attempt that may be made; given back by `record` or `abandon`, once."""

    target: str
    is_probe: bool
    breaker: _Breaker = field(repr=False)


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """What `mlxctl cloud breaker list` shows of one target."""

    target: str
    state: BreakerState
    failures: int  # in the window
    attempts: int
    retry_in_s: float | None  # until an attempt may try


class Breakers:
    """All targets that have been tried, by PROVIDER/MODEL."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._breakers: dict[str, _Breaker] = {}

    def admit(self, target: str) -> Admission | None:
        """Return that *target* may be asked now, or None; when it is half open, the first that asks is the probe."""
        breaker = self._breakers.setdefault(target, _Breaker())
        if breaker.open_until_s is None:
            return Admission(target, is_probe=False, breaker=breaker)
        if breaker.is_probing or self._now() < breaker.open_until_s:
            return None
        breaker.is_probing = True
        return Admission(target, is_probe=True, breaker=breaker)

    def begin(self, admission: Admission) -> Admission:
        """Note that an answer has begun, and return what to record its end with.

        A probe has succeeded with this, however long its answer takes: its end counts for the breaker that it closed.
        """
        if not admission.is_probe or self._breakers.get(admission.target) is not admission.breaker:
            return admission
        self._breakers[admission.target] = closed = _Breaker()
        return Admission(admission.target, is_probe=False, breaker=closed)

    def record(self, admission: Admission, *, failed: bool) -> None:
        """Note how an attempt ended. One that began before the breaker opened, or was reset, says nothing any more."""
        breaker = self._breakers.get(admission.target)
        if breaker is not admission.breaker or (breaker.open_until_s is not None and not admission.is_probe):
            return
        now = self._now()
        if admission.is_probe:
            if failed:
                self._open(breaker, now)
            else:  # the target refused the request as the request's own fault
                self._breakers[admission.target] = _Breaker()
            return
        breaker.results.append((now, failed))
        self._forget_old(breaker, now)
        failures = sum(failed for _, failed in breaker.results)
        if failures >= LEAST_FAILURES and failures >= FAILING_SHARE * len(breaker.results):
            self._open(breaker, now)

    def abandon(self, admission: Admission) -> None:
        """Note that an attempt ended without a word on the target: its client went away."""
        if admission.is_probe:
            admission.breaker.is_probing = False

    def reset(self, target: str | None = None) -> int:
        """Close the breaker of *target*, or all; return how many were not closed."""
        names = [name for name in self._breakers if target in (None, name)]
        opened = sum(self._breakers[name].open_until_s is not None for name in names)
        for name in names:
            del self._breakers[name]
        return opened

    def list(self) -> tuple[BreakerStatus, ...]:
        """Return the state of every target that has been tried lately, by name."""
        now = self._now()
        found = (self._status(target, breaker, now) for target, breaker in sorted(self._breakers.items()))
        return tuple(status for status in found if status.attempts or status.state is not BreakerState.CLOSED)

    def _status(self, target: str, breaker: _Breaker, now: float) -> BreakerStatus:
        self._forget_old(breaker, now)
        state, retry_in_s = BreakerState.CLOSED, None
        if breaker.open_until_s is not None:
            retry_in_s = max(0.0, breaker.open_until_s - now)
            state = BreakerState.OPEN if retry_in_s > 0 else BreakerState.HALF_OPEN
        failures = sum(failed for _, failed in breaker.results)
        return BreakerStatus(target, state, failures, len(breaker.results), retry_in_s)

    def _open(self, breaker: _Breaker, now: float) -> None:
        breaker.open_until_s = now + breaker.open_s
        breaker.open_s = min(2 * breaker.open_s, MOST_OPEN_S)
        breaker.is_probing = False
        breaker.results.clear()

    def _forget_old(self, breaker: _Breaker, now: float) -> None:
        while breaker.results and breaker.results[0][0] <= now - WINDOW_S:
            breaker.results.popleft()
