"""Dry runs: what they say is what then begins, for random pools; and they change nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlxd.pool.dry_run import Rehearsal
from mlxd.pool.lifecycle import ModelState
from mlxd.pool.status import PoolPlan, Victim
from mlxd.protocol.errors import DoesNotFit, InUse, MlxdError, ModelNotFound
from tests.support.pool_world import MB, World, facts, world
from tests.support.pool_world import settings as make_settings

SIZES_MB = {"a": 20, "b": 30, "c": 45}
model_ids = st.sampled_from(sorted(SIZES_MB))
steps = st.one_of(
    st.tuples(st.just("send"), model_ids, st.sampled_from((20, 900, 3000)), st.sampled_from((5, 2000))),
    st.tuples(st.just("load"), model_ids),
    st.tuples(st.just("advance"), st.sampled_from((0.3, 1.5, 6.0))),
)
commands = st.one_of(
    st.tuples(st.just("memory"), st.sampled_from((35, 60, 80, 100, 200))),
    st.tuples(st.just("max_models"), st.sampled_from((1, 2, "none"))),
    st.tuples(st.just("preload"), st.lists(model_ids, unique=True, max_size=2)),
    st.tuples(st.just("keep_alive"), st.sampled_from(("0s", "30m"))),
    st.tuples(st.just("load"), model_ids),
    st.tuples(st.just("unload"), model_ids),
    st.tuples(st.just("evict"), st.none()),
)


async def begin(w: World, command: tuple[str, Any]) -> tuple[PoolPlan, list[asyncio.Task[Any]]]:
    """Plan a command, then give it; return the plan and the tasks that wait for its end."""
    name, value = command
    if name == "load":
        planned = w.pool.plan_load(value)
        return planned, [w.task(w.pool.load(value))]
    if name == "unload":
        planned = w.pool.plan_unload(value)
        return planned, [w.task(w.pool.unload(value))]
    if name == "evict":
        planned, _ = w.pool.evict(None, dry=True)
        begun, _ = w.pool.evict(None)
        assert planned == begun
        return planned, []
    number = value * MB if name == "memory" else value
    merged = {**w.document, "pool": {**w.document.get("pool", {}), name: number}}
    new = make_settings(merged)
    planned = w.pool.plan(new)
    begun = w.pool.apply(new)
    # What has begun is not yet where it leads.
    outlook: dict[str, Any] = {"evicting_later": (), "trimming": (), "loading": (), "deferred": ()}
    assert dataclasses.replace(planned, **outlook) == dataclasses.replace(begun, **outlook)
    assert {victim.id for victim in begun.trimming} <= {victim.id for victim in planned.trimming}
    w.document = merged
    return planned, []


def fingerprint(w: World) -> Any:
    """Return what a dry run must leave as it is."""
    return dataclasses.asdict(w.pool.status()), list(w.backend.calls), len(w.events)


async def compare(history: list[tuple[Any, ...]], command: tuple[str, Any]) -> None:
    """Bring a pool somewhere, give it a command, and compare what it begins with what the dry run said."""
    w = World({name: facts(size * MB, per_token=3000) for name, size in SIZES_MB.items()}, {})
    w.backend.abort_s = 0.1  # what follows an abort is not what the command begins
    w.backend.pass_tokens = 20
    await w.pool.start()
    try:
        for step in history:
            if step[0] == "send":
                w.send(step[1], tokens=step[2], prompt="x" * step[3])
            elif step[0] == "load":
                w.task(w.pool.load(step[1])).add_done_callback(lambda task: task.cancelled() or task.exception())
            else:
                await w.advance(step[1])
        await w.settle()
        was_aborting = {resident.id for resident in w.pool._state.present if resident.state is ModelState.ABORTING}
        ready = {resident.id for resident in w.pool._state.present if resident.state is ModelState.READY}
        seen = len(w.events)
        try:
            planned, waiting = await begin(w, command)
        except MlxdError:
            return
        if waiting:
            await asyncio.sleep(0)  # the task of the command begins; a turn later requests may end, and models go
        events = [(event.kind, event.model_id) for event in w.events[seen:]]
        begun = [model_id for kind, model_id in events if kind == "model.evicting" and model_id in ready]
        assert [victim.id for victim in planned.evicting] == begun
        aborting = {resident.id for resident in w.pool._state.present if resident.state is ModelState.ABORTING}
        assert {victim.id for victim in planned.aborting} == aborting - was_aborting
        drained = [model_id for kind, model_id in events if kind == "model.draining"]
        assert {model.id for model in planned.draining if planned.drain_after_s is None} >= set(drained) - set(begun)
        loading = [model_id for kind, model_id in events if kind == "model.loading"]
        assert set(loading) <= set(planned.loading)
        for task in waiting:
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    finally:
        w.backend.abort_s = 0  # the clock stands from here
        await w.close()


@example(  # the command ends a request, and with that the model goes
    [("send", "a", 3000, 2000), ("send", "c", 3000, 2000), ("advance", 6.0), ("send", "a", 20, 5)], ("unload", "a")
)
@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=12), commands)
def test_what_a_dry_run_says_is_what_begins(history: list[tuple[Any, ...]], command: tuple[str, Any]) -> None:
    """For random pools the victims are those of the plan, in its order; no other model drains, no other loads."""
    asyncio.run(compare(history, command))


async def test_a_dry_run_changes_nothing() -> None:
    """Whatever is planned, models, queue, device and events stay as they are."""
    async with world({"a": 60, "b": 60, "c": 20}) as w:
        stream = w.send("a", tokens=3000)
        await w.load("c")
        waiting = w.send("b")
        await w.advance(1)
        before = fingerprint(w)
        w.pool.plan(make_settings({"pool": {"memory": 70 * MB, "preload": ["b"]}}))
        w.pool.plan_load("b")
        w.pool.plan_unload("a", force=True)
        w.pool.evict(None, dry=True)
        w.pool.estimate("b", 1000, 4)
        assert fingerprint(w) == before
        assert not stream.done
        assert not waiting.done


async def test_a_load_names_what_gives_way_for_it() -> None:
    """Idle models go at once, in the order of the policy."""
    async with world({"a": 40, "b": 40, "c": 60}) as w:
        await w.load("a", "b")
        planned = w.pool.plan_load("c")
        assert [victim.id for victim in planned.evicting] == ["a", "b"]
        assert planned.loading == ("c",)
        assert planned.waiting is None


async def test_a_load_that_busy_models_block_says_so() -> None:
    """The reason is that of the queue, and what would drain after the patience is named with it."""
    async with world({"a": 60, "b": 60}) as w:
        w.send("a", tokens=9000)
        await w.advance(2)
        planned = w.pool.plan_load("b")
        assert planned.loading == ()
        assert "a has 1 request" in str(planned.waiting)
        assert [model.id for model in planned.draining] == ["a"]
        assert planned.drain_after_s == 30


@pytest.mark.parametrize("kept_tokens", [0, 9000])
@pytest.mark.parametrize("size_mb", [60, 85, 500])
async def test_all_that_goes_for_a_load_by_force_is_named(size_mb: int, kept_tokens: int) -> None:
    """Idle models, one that still loads, a busy one, and a preloaded one when the load is over the limit."""
    models = {"idle": 15, "busy": 15, "kept": 15, "slow": 15, "huge": size_mb}
    async with world(models, {"pool": {"preload": ["kept"]}}) as w:
        await w.advance(2)
        await w.load("idle")
        w.send("busy", tokens=9000)
        if kept_tokens:
            w.send("kept", tokens=kept_tokens)
        await w.advance(1)
        w.task(w.pool.load("slow"))
        await w.advance(0.3)
        planned = w.pool.plan_load("huge", force=True)
        named = {victim.id for victim in (*planned.evicting, *planned.evicting_later)}
        named |= {model.id for model in planned.draining}
        await w.run(w.pool.load("huge", force=True))
        assert w.state("huge") == "ready"
        gone = {str(event.model_id) for event in w.events if event.kind in {"model.draining", "model.evicting"}}
        assert named == gone
        assert planned.drain_after_s == (None if size_mb == 60 else 30)


async def test_loads_that_a_command_aborts_are_named() -> None:
    """A lowered limit and an unload say which loads they end, as they then do; an operation waits until they have."""
    async with world({"a": 30, "b": 40, "a+x": 2}, {"pool": {"memory": 120 * MB}}) as w:
        w.backend.load_s, w.backend.abort_s = 60, 2
        w.send("b")
        await w.advance(1)
        held_bytes = w.pool._state.held_bytes_of("b")
        assert w.pool.plan_unload("b").aborting == (Victim("b", held_bytes),)
        begun = w.change({"pool": {"memory": 35 * MB}})
        assert (begun.aborting, begun.model_ids) == ((Victim("b", held_bytes),), ("b",))
        settled = w.task(w.pool.wait_settled(begun))
        await w.advance(1)
        assert w.pool.status().over_limit == "stopping the load of b"
        assert w.pool.plan_unload("b").aborting == ()  # it ends already
        assert not settled.done()
        await w.advance(1.5)
        assert settled.result() == ()


async def test_an_unload_names_the_loads_on_a_base() -> None:
    """An adapter whose load ends with its base is named beside the base."""
    async with world({"a": 30, "a+x": 2}) as w:
        await w.load("a")
        w.backend.load_s = 60
        w.send("a+x")
        await w.advance(1)
        planned = w.pool.plan_unload("a")
        assert [victim.id for victim in planned.aborting] == ["a+x"]
        assert planned.model_ids == ("a", "a+x")


async def test_a_load_that_can_never_fit_is_refused_in_a_dry_run_too() -> None:
    """The same error as the load's."""
    async with world({"huge": 400}) as w:
        with pytest.raises(DoesNotFit, match="huge needs"):
            w.pool.plan_load("huge")
        with pytest.raises(ModelNotFound):
            w.pool.plan_load("nothing")


async def test_prompt_caches_give_way_before_models() -> None:
    """Where emptying a cache is enough for a load no model goes, and the plan says how many bytes it is."""
    async with world({"a": 40, "b": 40}, {"pool": {"memory": 89 * MB}}) as w:
        await w.run(w.answer("a", prompt="x" * 6000))
        planned = w.pool.plan_load("b")
        assert planned.evicting == ()
        assert [victim.id for victim in planned.trimming] == ["a"]
        cached = w.model("a")
        assert cached is not None
        assert 0 < planned.trimming[0].bytes <= cached.prompt_cache_bytes

        await w.load("b")
        assert (w.state("a"), w.state("b")) == ("ready", "ready")
        assert "evicting" not in w.kinds("a")


async def test_a_dry_run_lets_a_trim_that_is_under_way_end() -> None:
    """A load that waits for nothing but that begins in the dry run as it soon will."""
    async with world({"a": 40, "b": 40}, {"pool": {"memory": 89 * MB}}) as w:
        await w.run(w.answer("a", prompt="x" * 6000))
        w.task(w.pool.load("b"))
        await w.settle()
        assert w.state("b") == "queued"
        assert w.pool._state.residents["a"].trim_target_bytes is not None

        planned = w.pool.plan_load("b")

        assert (planned.loading, planned.waiting) == (("b",), None)


async def test_the_order_in_which_memory_is_given_back() -> None:
    """First the caches of those that stay, then idle models by the policy, then busy ones, which drain."""
    async with world({"a": 30, "b": 30, "c": 20}, {"pool": {"memory": 110 * MB}}) as w:
        await w.run(w.answer("a", prompt="x" * 8000))
        await w.load("b")
        w.send("c", tokens=9000)
        await w.advance(2)
        said = []
        for limit in (92, 60, 30, 20):
            new = make_settings({"pool": {"memory": limit * MB}})
            planned = w.pool.plan(new)
            said.append(
                (
                    [victim.id for victim in planned.trimming],
                    [victim.id for victim in planned.evicting],
                    [model.id for model in planned.draining],
                )
            )
        assert said == [(["a"], [], []), ([], ["a"], []), ([], ["a", "b"], []), ([], ["a", "b"], ["c"])]


async def test_evict_takes_idle_models_and_says_why_others_stay() -> None:
    """Idle ones go, with bytes; busy, pinned and preloaded ones stay with their reason."""
    document = {"pool": {"memory": 200 * MB, "preload": ["p"]}, "models": {"q": {"pin": True}}}
    async with world({"a": 20, "b": 20, "p": 20, "q": 20}, document) as w:
        await w.load("a", "q")
        w.send("b", tokens=9000)
        await w.advance(2)
        begun, kept = w.pool.evict(None)
        assert [(victim.id, victim.bytes > 20 * MB) for victim in begun.evicting] == [("a", True)]
        assert kept == {"b": "b has 1 request", "p": "p is preloaded", "q": "q is pinned"}
        for model_id, reason in {"b": "has 1 request", "p": "preload", "q": "pinned"}.items():
            with pytest.raises(InUse, match=reason):
                w.pool.evict(model_id)
        begun, _ = w.pool.evict("b", force=True)
        assert [model.id for model in begun.draining] == ["b"]
        await w.settle()
        assert w.state("b") == "draining"


async def test_an_evicted_model_comes_back_for_what_waits() -> None:
    """Unlike an unload, an eviction fails nobody."""
    async with world({"a": 20}) as w:
        await w.load("a")
        begun, _ = w.pool.evict("a")
        assert [victim.id for victim in begun.evicting] == ["a"]
        assert w.pool.evict("a")[0].evicting == ()
        assert await w.run(w.answer("a"))


async def test_an_estimate_adds_up_and_asks_the_policy() -> None:
    """Weights, KV and margin are the total; what gives way is what the policy takes for that much."""
    async with world({"a": 40, "b": 60}) as w:
        await w.load("a")
        estimate = w.pool.estimate("b", 2000, 2)
        assert estimate.kv_bytes == 2 * 2255 * 1000
        assert estimate.total_bytes == estimate.weights_bytes + estimate.kv_bytes + estimate.margin_bytes
        assert (estimate.weights_confidence, estimate.kv_confidence) == ("header", "header")
        assert estimate.fits == "freeing"
        assert estimate.evicting == (Victim("a", w.pool._state.held_bytes_of("a")),)

        assert w.pool.estimate("b", 16_000, 8).fits == "never"
        loaded = w.pool.estimate("a")
        assert (loaded.weights_confidence, loaded.context_tokens, loaded.fits) == ("measured", 4096, "fits")


async def test_an_estimate_counts_a_loaded_model_and_an_adapter_for_no_model_more() -> None:
    """With as many models as may be, what is there fits, an adapter on it too, and another model only in its place."""
    async with world({"a": 20, "a+x": 2, "b": 20}, {"pool": {"max_models": 1}}) as w:
        await w.load("a")
        assert [w.pool.estimate(model_id).fits for model_id in ("a", "a+x", "b")] == ["fits", "fits", "freeing"]


async def test_a_sequence_that_ends_is_in_nobodys_way() -> None:
    """A client has just gone: a dry run takes it that the device soon says that it has ended."""
    async with world({"a": 30}) as w:
        client = w.send("a", tokens=1_000)
        await w.advance(2)
        client.task.cancel()
        await w.settle()
        planned = w.pool.plan_unload("a")
        assert [victim.id for victim in planned.evicting] == ["a"]
        assert planned.draining == ()


async def test_a_request_has_the_same_turn_in_a_dry_run() -> None:
    """Who stands behind younger requests, as one of its answers has ended, stands there in a dry run too."""
    async with world({"a": 30}, {"engine": {"max_sequences": 1}}) as w:
        w.send("a", tokens=20, n=3)
        w.send("a", tokens=20)
        state = w.pool._state
        for _ in range(40):
            await w.advance(0.1)
            turns = [ticket.turn for ticket in state.residents["a"].held.values()]
            if turns != sorted(turns):
                break
        assert turns != sorted(turns)
        assert [ticket.turn for ticket in Rehearsal(state).state.residents["a"].held.values()] == turns
