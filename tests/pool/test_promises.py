"""Each of the twelve checks can fail: a pool that is broken in one place is caught by the promise of that place."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mlxd.engine.base import Engine, LoadProgress, LoadSpec
from mlxd.pool import policy
from mlxd.pool.allocator import Allocator
from mlxd.pool.lifecycle import ModelState
from mlxd.pool.policy import Demand, Outcome, Plan, View
from mlxd.pool.resident import Resident
from mlxd.pool.scheduler import Scheduler
from mlxd.pool.state import PoolState
from mlxd.protocol.errors import LoadFailed, MlxdError, RequestCancelled
from tests.support.fake_row import answer_text
from tests.support.pool_invariants import PROMISES, WatchedWorld
from tests.support.pool_world import MB, facts
from tests.support.promise.base import Promise
from tests.support.promise.load import P7OneLoad, P8OnePath, P11LoadsComplete
from tests.support.promise.truth import P12Truth
from tests.support.promise.victim import P1Limit, P2Protection, P9Pins, P10NothingInVain
from tests.support.promise.wait import P3NoResurrection, P4Patience, P5NoQueueing, P6EveryWaitEnds

Break = Callable[[WatchedWorld, pytest.MonkeyPatch], None]
Play = Callable[[WatchedWorld], Awaitable[object]]


def _load_whatever_fits_or_not(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "plan_room", lambda view, demand: Plan(Outcome.FITS))


def _evict_a(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    real = policy.plan_room

    def plan_room(view: View, demand: Demand) -> Plan:
        if demand.target == "a":
            return real(view, demand)
        is_there = any(other.model_id == "a" and other.is_ready for other in view.candidates)
        return Plan(Outcome.FREEING, evict=("a",) if is_there else ())

    patch.setattr(policy, "plan_room", plan_room)


def _lease_while_draining(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    grant = Scheduler._grant_leases
    run_round = Scheduler._run_round

    def run(scheduler: Scheduler) -> None:
        run_round(scheduler)
        for resident in w.pool._state.residents.values():
            if resident.state is ModelState.DRAINING:
                grant(scheduler, resident)

    patch.setattr(Scheduler, "_run_round", run)


def _have_no_patience_to_end(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    plan_room = policy.plan_room

    def patient(view: View, demand: Demand) -> Plan:
        return plan_room(view, dataclasses.replace(demand, is_overdue=False))

    patch.setattr(policy, "plan_room", patient)


def _claim_nothing(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    plan_room = policy.plan_room

    def wait(view: View, demand: Demand) -> Plan:
        plan = plan_room(view, demand)
        leaves = plan.evict or plan.drain or plan.trims
        return plan if leaves or plan.outcome is not Outcome.FREEING else Plan(Outcome.BLOCKED)

    patch.setattr(policy, "plan_room", wait)


def _pause_nothing(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Allocator, "_pause_youngest", lambda allocator, n_bytes, than: 0)


def _grant_nothing(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_grant_leases", lambda scheduler, resident: None)


def _expire_nothing(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Scheduler, "_expire_waits", lambda scheduler, resident: None)


def _tell_another_cause(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    fail = Resident.fail_waiting

    def tell(resident: Resident, error: MlxdError) -> None:
        fail(resident, RequestCancelled("something else"))

    patch.setattr(Resident, "fail_waiting", tell)
    w.backend.fail_load("a", LoadFailed("the disk is on fire"))


def _load_by_other_settings(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    load = w.backend.load

    async def other(spec: LoadSpec, on_progress: LoadProgress) -> Engine:
        return await load(dataclasses.replace(spec, prompt_cache_limit_bytes=7), on_progress)

    patch.setattr(w.backend, "load", other)


def _expire_pinned_models(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    def expiry_s(state: PoolState, resident: Resident, settings: object = None) -> float:
        is_idle = resident.state is ModelState.READY and resident.can_unload
        return resident.released_s + 1 if is_idle else math.inf

    patch.setattr(PoolState, "expiry_s", expiry_s)


def _abort_loads(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    w.clock.call_later(0.5, lambda: _cancel(w))


def _cancel(w: WatchedWorld) -> None:
    w.pool._tasks.cancel_all()


def _measure_too_little(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    w.clock.call_later(1.5, lambda: setattr(w.pool._state.residents["a"], "facts", None))
    w.clock.call_later(1.5, w.backend.models.clear)
    w.catalog.index["a"] = dataclasses.replace(w.catalog.index["a"], weights_bytes=1)


def _measure_beside_streams(w: WatchedWorld, patch: pytest.MonkeyPatch) -> None:
    w.backend.mismeasure("a", 55_000_000)  # what running streams freed meanwhile was taken off the weights


async def _ask_for_two(w: WatchedWorld) -> None:
    """Steady requests for a, one for b, and time."""
    busy = w.send("a", tokens=9000)
    await w.advance(2)
    w.send("b")
    await w.advance(10)
    w.send("a")
    await w.advance(60)
    busy.task.cancel()
    await w.advance(5)


async def _ask_for_one_beside_a_stream(w: WatchedWorld) -> None:
    """Requests for a that never cease and take all the memory, and one for b, which fits beside a."""
    w.backend.step_s, w.backend.pass_tokens = 0.2, 20
    for number in range(20):
        w.send("a", tokens=1500, prompt="x" * 4000, seed=number)
        await w.advance(2)
        if number == 3:
            w.send("b")


async def _ask_for_too_much(w: WatchedWorld) -> None:
    await w.load("a")
    w.send("huge")
    await w.advance(2)


async def _drain_with_requests(w: WatchedWorld) -> None:
    w.send("a", tokens=3000)
    await w.advance(2)
    w.task(w.pool.unload("a"))
    await w.advance(1)
    w.send("a")
    await w.advance(2)


BROKEN: list[tuple[type[Promise], Break, Play]] = [
    (P1Limit, _load_whatever_fits_or_not, _ask_for_two),
    (P2Protection, _expire_pinned_models, _ask_for_two),
    (P3NoResurrection, _lease_while_draining, _drain_with_requests),
    (P4Patience, _have_no_patience_to_end, _ask_for_two),
    (P5NoQueueing, _grant_nothing, _ask_for_two),
    (P6EveryWaitEnds, _expire_nothing, _ask_for_two),
    (P7OneLoad, _tell_another_cause, _ask_for_two),
    (P8OnePath, _load_by_other_settings, _ask_for_two),
    (P9Pins, _expire_pinned_models, _ask_for_two),
    (P10NothingInVain, _evict_a, _ask_for_too_much),
    (P11LoadsComplete, _abort_loads, _ask_for_two),
    (P12Truth, _measure_too_little, _ask_for_two),
    (P12Truth, _measure_beside_streams, _ask_for_two),
]
PINNED = {P2Protection, P9Pins}


@pytest.mark.parametrize(("promise", "break_it", "play"), BROKEN, ids=lambda item: getattr(item, "__name__", None))
def test_a_broken_pool_is_caught(
    promise: type[Promise], break_it: Break, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The promise holds in a history of the pool as it is, and its check fails in the same history of a broken one."""
    number = promise.__name__.partition("P")[2].rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    document = {
        "queue": {"timeout": "50s"},
        "pool": {"evict_patience": "20s"},
        "models": {"a": {"pin": promise in PINNED}},
    }

    with_huge = {"a": 60, "b": 60, "huge": 400}
    catch(lambda: WatchedWorld(with_huge, document, kinds=[promise]), play, lambda w: break_it(w, monkeypatch), number)


def catch(make: Callable[[], WatchedWorld], play: Play, break_it: Callable[[WatchedWorld], None], number: str) -> None:
    """Hold that the promise of this number is kept by a sound pool, and seen to be broken by a broken one."""

    async def live(*, broken: bool) -> None:
        w = make()
        await w.pool.start()
        try:
            if broken:
                break_it(w)
            await play(w)
        finally:
            await w.close()

    asyncio.run(live(broken=False))
    with pytest.raises(AssertionError, match=rf"^P{number}: "):
        asyncio.run(live(broken=True))


PRELOADED: dict[str, Any] = {"pool": {"preload": ["a"]}}


@pytest.mark.parametrize(
    ("break_it", "kept"),
    [
        (_have_no_patience_to_end, PRELOADED),
        (_have_no_patience_to_end, {"models": {"a": {"pin": True}}}),
        (_have_no_patience_to_end, {}),
        (_claim_nothing, PRELOADED),
        (_pause_nothing, PRELOADED),
    ],
)
def test_a_pool_in_which_a_stream_starves_a_load_is_caught(
    break_it: Break, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4 holds beside a preloaded, a pinned and an ordinary model whose requests take all that a load lacks."""
    pool = {"memory": 145 * MB, "evict_patience": "20s", **kept.get("pool", {})}
    document = {**kept, "pool": pool, "queue": {"timeout": "50s"}}

    def make() -> WatchedWorld:
        return WatchedWorld({"a": 60, "b": 60}, document, kinds=[P4Patience])

    catch(make, _ask_for_one_beside_a_stream, lambda w: break_it(w, monkeypatch), "4")


@asynccontextmanager
async def crowded_world(document: dict[str, Any]) -> AsyncIterator[WatchedWorld]:
    """Run a world of three models of which two fit, and whose rows make 1200 tokens a second, watched by P1 to P12."""
    sizes_mb = {"a": 20, "b": 30, "c": 45}
    w = WatchedWorld({name: facts(size * MB, per_token=3000) for name, size in sizes_mb.items()}, document)
    w.backend.step_s, w.backend.pass_tokens, w.backend.unload_s = 0.05, 60, 0.3
    await w.pool.start()
    try:
        yield w
    finally:
        await w.close()


async def test_a_younger_sequence_pauses_beside_a_model_that_drains() -> None:
    """P1: a sequence that went on over the limit, when nothing else ran, gives way to an older one that has begun."""
    async with crowded_world({"pool": {"memory": 80 * MB, "evict_patience": "2s"}}) as w:
        w.send("b", tokens=3000)
        oldest = w.send("c", tokens=600)
        younger = w.send("a", tokens=3000, prompt="x" * 200)
        await w.advance(2.5)
        assert (w.state("b"), w.kinds("a")[-1]) == ("draining", "sequence.paused")  # for c, which is overdue
        w.send("b")
        await w.advance(2)
        assert (w.state("c"), w.kinds("a")[-1]) == ("loading", "sequence.resumed")  # nothing else runs
        assert w.pool.status().over_limit == "loading c"

        await w.advance(0.6)

        assert (w.state("c"), oldest.done) == ("draining", False)  # for the second request for b
        assert w.kinds("a")[-1] == "sequence.paused"
        assert w.pool.status().over_limit is None
        await w.advance(60)
        assert younger.text == answer_text("x" * 200, 0, 3000)


async def test_no_model_goes_while_older_sequences_are_in_the_way_of_a_load() -> None:
    """P4: a load that fits beside a busy model waits for the older sequence there; only then does the idle one go."""
    async with crowded_world({"pool": {"memory": 100 * MB, "evict_patience": "0s"}}) as w:
        await w.load("a")
        older = w.send("b", tokens=6000, prompt="x" * 2500)
        await w.advance(4)
        load = w.send("c", tokens=5)
        await w.advance(1)
        assert (w.state("a"), w.state("b"), w.state("c")) == ("ready", "ready", "queued")
        assert not older.done

        await w.advance(4)
        assert older.text == answer_text("x" * 2500, 0, 6000)
        assert (w.state("a"), w.state("b"), load.done) == ("unloaded", "ready", True)


def test_every_promise_has_a_broken_pool() -> None:
    """P1 to P12, in their order."""
    assert tuple(dict.fromkeys(promise for promise, _, _ in BROKEN)) == PROMISES
