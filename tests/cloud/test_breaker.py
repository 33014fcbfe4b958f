"""Breakers on a fake clock."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.cloud.breaker import FIRST_OPEN_S, LEAST_FAILURES, MOST_OPEN_S, WINDOW_S, Breakers, BreakerState
from tests.support.clock import FakeClock

TARGET = "p/m"


def attempt(breakers: Breakers, *, failed: bool) -> bool:
    """Make an attempt if it may be made; return whether it was."""
    admission = breakers.admit(TARGET)
    if admission is not None:
        breakers.record(admission, failed=failed)
    return admission is not None


def state(breakers: Breakers) -> BreakerState:
    """Return the target's state."""
    return next((status.state for status in breakers.list()), BreakerState.CLOSED)


def opened() -> tuple[FakeClock, Breakers]:
    """Return breakers of which one has just opened."""
    clock = FakeClock()
    breakers = Breakers(clock.now)
    for _ in range(LEAST_FAILURES):
        attempt(breakers, failed=True)
    return clock, breakers


def test_it_opens_longer_each_time_and_closes_at_once() -> None:
    """30 s, doubling to 5 min, while each probe fails; a probe that succeeds begins anew."""
    clock, breakers = opened()
    for open_s in (FIRST_OPEN_S, 60, 120, 240, MOST_OPEN_S, MOST_OPEN_S):
        clock.move(open_s - 1)
        assert (attempt(breakers, failed=True), state(breakers)) == (False, BreakerState.OPEN)
        clock.move(1)
        assert state(breakers) is BreakerState.HALF_OPEN
        assert attempt(breakers, failed=True)
    clock.move(MOST_OPEN_S)
    assert attempt(breakers, failed=False)
    assert state(breakers) is BreakerState.CLOSED
    for _ in range(LEAST_FAILURES):
        assert attempt(breakers, failed=True)
    clock.move(FIRST_OPEN_S)
    assert state(breakers) is BreakerState.HALF_OPEN


def test_there_is_one_probe_and_one_that_is_abandoned_makes_room() -> None:
    """Of two that ask at once one is told no; a client that leaves in the middle of it leaves the place."""
    clock, breakers = opened()
    clock.move(FIRST_OPEN_S)
    probe = breakers.admit(TARGET)
    assert probe is not None
    assert breakers.admit(TARGET) is None
    breakers.abandon(probe)
    assert breakers.admit(TARGET) is not None


def test_a_probe_succeeds_when_its_answer_begins() -> None:
    """The target is open to all from then on; how the long answer ends counts for the breaker that it has closed."""
    clock, breakers = opened()
    clock.move(FIRST_OPEN_S)
    probe = breakers.admit(TARGET)
    assert probe is not None
    begun = breakers.begin(probe)
    assert attempt(breakers, failed=False)
    breakers.record(begun, failed=True)
    (status,) = breakers.list()
    assert (status.state, status.failures, status.attempts) == (BreakerState.CLOSED, 1, 2)
    breakers.abandon(probe)
    assert breakers.list() == (status,)


def test_an_answer_that_begins_counts_once_when_it_ends() -> None:
    """Beginning says nothing yet of a target that is asked anyway, nor of one whose breaker was reset meanwhile."""
    clock, breakers = opened()
    clock.move(FIRST_OPEN_S)
    probe = breakers.admit(TARGET)
    assert probe is not None
    breakers.reset()
    assert breakers.begin(probe) is probe
    assert breakers.list() == ()
    plain = breakers.admit(TARGET)
    assert plain is not None
    assert breakers.begin(plain) is plain
    assert breakers.list() == ()


def test_exactly_half_is_enough_and_less_is_not() -> None:
    """Five failures of ten attempts open it; of eleven they do not."""
    for good, expected in ((LEAST_FAILURES, BreakerState.OPEN), (LEAST_FAILURES + 1, BreakerState.CLOSED)):
        breakers = Breakers(FakeClock().now)
        for number in range(good + LEAST_FAILURES):
            attempt(breakers, failed=number >= good)
        assert state(breakers) is expected


def test_what_is_older_than_a_minute_is_shown_no_more() -> None:
    """Also where nobody has asked since."""
    clock = FakeClock()
    breakers = Breakers(clock.now)
    attempt(breakers, failed=True)
    clock.move(WINDOW_S)
    assert breakers.list() == ()


def test_what_is_older_than_a_minute_opens_nothing() -> None:
    """The failure that would be the last one of many is the first of its minute."""
    clock = FakeClock()
    breakers = Breakers(clock.now)
    for _ in range(LEAST_FAILURES - 1):
        attempt(breakers, failed=True)
    clock.move(WINDOW_S)
    attempt(breakers, failed=True)
    assert state(breakers) is BreakerState.CLOSED


def test_what_began_before_it_opened_says_nothing_any_more() -> None:
    """A late answer neither closes it, nor opens it for longer, nor frees the probe's place."""
    clock = FakeClock()
    breakers = Breakers(clock.now)
    late = [breakers.admit(TARGET) for _ in range(3)]
    for _ in range(LEAST_FAILURES):
        attempt(breakers, failed=True)
    good, bad, gone = (admission for admission in late if admission is not None)
    breakers.record(good, failed=False)
    assert state(breakers) is BreakerState.OPEN
    breakers.record(bad, failed=True)
    clock.move(FIRST_OPEN_S)
    assert breakers.admit(TARGET) is not None
    breakers.abandon(gone)
    assert breakers.admit(TARGET) is None
    breakers.reset()
    breakers.record(bad, failed=True)
    assert breakers.list() == ()


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60))
def test_it_opens_exactly_when_half_of_a_minutes_attempts_have_failed(steps: list[tuple[int, bool]]) -> None:
    """Held against a count by hand: at least five, and at least half, of those within the window."""
    clock = FakeClock()
    breakers = Breakers(clock.now)
    window: deque[tuple[float, bool]] = deque()
    for seconds, failed in steps:
        clock.move(seconds)
        assert attempt(breakers, failed=failed)
        window.append((clock.now(), failed))
        while window[0][0] <= clock.now() - WINDOW_S:
            window.popleft()
        failures = sum(each for _, each in window)
        if failures >= LEAST_FAILURES and failures >= len(window) / 2:
            assert state(breakers) is BreakerState.OPEN
            return
        assert state(breakers) is BreakerState.CLOSED
