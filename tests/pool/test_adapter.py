"""Adapters as models of their own: they bring their base, share its weights, and go with it."""

from __future__ import annotations

import pytest

from mlxd.protocol.errors import DoesNotFit, InsufficientCapacity, LoadFailed, ModelNotFound, ModelUnloaded
from tests.support.fake_row import answer_text
from tests.support.pool_world import MB, World, world

# In MB: a base, two adapters on it, and others. A loaded model takes its weights, 1.05 MB or more of margin and 1.28
# MB of KV.
MODELS = {"a": 30, "a+x": 2, "a+y": 2, "b": 30, "big": 60}


def loads(w: World) -> list[str]:
    """Return what the device was told to load and unload."""
    return list(w.backend.calls)


async def test_a_request_for_an_adapter_brings_its_base() -> None:
    """The base is loaded first, once for all who want it, and is ready for requests of its own then."""
    async with world(MODELS) as w:
        clients = [w.send("a+x"), w.send("a+y"), w.send("a+x", prompt="other"), w.send("a")]
        await w.advance(10)
        assert all(client.done for client in clients)
        assert clients[0].text == answer_text("hello", 0, 10)
        assert loads(w) == ["load a", "load a+x", "load a+y"]
        assert w.model("a+x").base == "a"  # type: ignore[union-attr]


async def test_the_ledger_counts_the_weights_once() -> None:
    """An adapter reserves its own bytes, workspace and KV beside its base."""
    async with world(MODELS) as w:
        await w.load("a")
        before = w.pool.status().memory
        await w.load("a+x")
        after = w.pool.status().memory
        assert after.weights_bytes - before.weights_bytes == 2 * MB
        assert after.reserved_bytes - before.reserved_bytes < 5 * MB
        assert w.backend.active_bytes == 32 * MB


async def test_a_base_stays_while_an_adapter_is_loaded() -> None:
    """It does not expire before its adapter does; a use of the adapter is a use of the base."""
    async with world(MODELS, {"pool": {"keep_alive": "60s"}}) as w:
        await w.load("a+x")
        await w.advance(50)
        client = w.send("a+x")
        await w.advance(50)
        assert client.done
        assert (w.state("a"), w.state("a+x")) == ("ready", "ready")
        await w.advance(15)
        assert (w.state("a"), w.state("a+x")) == ("unloaded", "unloaded")
        assert loads(w)[-2:] == ["unload a+x", "unload a"]


async def test_a_base_with_no_keep_alive_waits_for_its_adapter() -> None:
    """Between the load of the base and that of the adapter it is wanted, and not idle."""
    async with world(MODELS, {"pool": {"keep_alive": "0s"}}) as w:
        assert await w.run(w.answer("a+x")) == answer_text("hello", 0, 10)
        await w.advance(1)
        assert loads(w) == ["load a", "load a+x", "unload a+x", "unload a"]


async def test_an_evicted_base_takes_its_idle_adapters_along() -> None:
    """A model that needs the room gets it at once: an idle adapter does not make its base busy."""
    async with world(MODELS, {"pool": {"memory": 90 * MB}}) as w:
        await w.load("a+x", "a+y")
        client = w.send("big", tokens=5)
        await w.advance(2)
        assert client.done
        assert loads(w)[3:] == ["unload a+x", "unload a+y", "unload a", "load big"]


async def test_a_base_drains_when_its_adapter_is_busy() -> None:
    """After the patience the adapter's requests end first, then both go; none is lost."""
    async with world(MODELS, {"pool": {"memory": 90 * MB}}) as w:
        await w.load("a+x")
        running = w.send("a+x", tokens=4000)
        await w.advance(1)
        waiting = w.send("big", tokens=5)
        await w.advance(25)
        assert (w.state("a"), w.state("a+x")) == ("ready", "ready")
        await w.advance(7)
        assert (w.state("a"), w.state("a+x")) == ("draining", "draining")
        await w.advance(60)
        assert waiting.done
        assert running.text == answer_text("hello", 0, 4000)


async def test_evicting_only_the_adapter_when_that_is_enough() -> None:
    """The base stays where the adapter's bytes are all that is needed."""
    async with world({"a": 30, "a+x": 20, "b": 30}, {"pool": {"memory": 75 * MB}}) as w:
        await w.load("a+x")
        await w.load("a")
        client = w.send("b", tokens=5)
        await w.advance(5)
        assert client.done
        assert (w.state("a"), w.state("a+x"), w.state("b")) == ("ready", "unloaded", "ready")


async def test_the_base_is_no_victim_of_its_own_adapter() -> None:
    """Another idle model goes for an adapter's load, although the base was used less recently."""
    async with world({"a": 30, "a+x": 20, "b": 35}, {"pool": {"memory": 75 * MB}}) as w:
        await w.load("a", "b")
        client = w.send("a+x", tokens=5)
        await w.advance(5)
        assert client.done
        assert loads(w) == ["load a", "load b", "unload b", "load a+x"]


async def test_what_can_never_fit_evicts_nothing_and_loads_no_base() -> None:
    """The sum of base and adapter is judged before either is loaded, and nobody leaves for it."""
    async with world({"a": 60, "a+x": 50, "b": 30}) as w:
        await w.load("b")
        with pytest.raises(DoesNotFit, match=r"a\+x needs 11"):
            await w.run(w.answer("a+x"))
        assert loads(w) == ["load b"]


async def test_a_base_that_fails_to_load_fails_its_adapters() -> None:
    """Every request gets the cause, also in the backoff."""
    async with world(MODELS) as w:
        w.backend.fail_load("a", LoadFailed("the weights are broken"))
        first, second = w.send("a+x"), w.send("a+y")
        await w.advance(2)
        assert all("broken" in str(client.error) for client in (first, second))
        with pytest.raises(LoadFailed, match="not tried again"):
            await w.run(w.answer("a+x"))
        assert loads(w) == ["load a"]
        assert w.pool.reset("a")
        assert await w.run(w.answer("a+x")) == answer_text("hello", 0, 10)
        assert not w.pool.reset("a")


async def test_an_old_failure_is_not_why_a_base_waits_for_room() -> None:
    """After the backoff an adapter waits for what its base waits for, and not for what it failed of before."""
    async with world(MODELS) as w:
        w.backend.fail_load("a", LoadFailed("bad magic"))
        failed = w.send("a+x")
        await w.advance(2)
        assert isinstance(failed.error, LoadFailed)
        for seed, model_id in enumerate(("b", "big")):
            w.send(model_id, tokens=9000, seed=seed)
        await w.advance(10)
        w.send("a+x", seed=1)
        await w.settle()
        reasons = {wait.model: wait.reason for wait in w.pool.status().queue}
        assert reasons["a+x"] == "its base a waits for room"
        w.send("a", seed=2)
        await w.settle()
        reasons = {wait.model: wait.reason for wait in w.pool.status().queue}
        assert "big has 1 request" in reasons["a+x"]


async def test_a_preloaded_adapter_waits_for_the_backoff_of_its_base() -> None:
    """The base is not loaded again and again for the list; a refused one is not loaded at all."""
    async with world(MODELS, {"pool": {"preload": ["a+x"]}}) as w:
        w.backend.fail_load("a", LoadFailed("the weights are broken"))
        await w.advance(4)
        assert loads(w) == ["load a"]
        assert "the weights are broken" in str(w.pool.status().preload[0].reason)
        await w.advance(10)
        assert loads(w) == ["load a", "load a", "load a+x"]

    async with world(MODELS) as w:
        w.pool.refuse("a", LoadFailed("it killed the daemon"))
        planned = w.change({"pool": {"preload": ["a+x"]}})
        assert [model.reason for model in planned.deferred] == ["its base could not be loaded: it killed the daemon"]
        await w.advance(1000)
        with pytest.raises(LoadFailed, match="it killed"):
            await w.pool.load("a+x")
        assert loads(w) == []


async def test_unloading_the_base_by_command_takes_the_adapters() -> None:
    """Requests of theirs that have not started get `ModelUnloaded`; running ones end first."""
    async with world(MODELS, {"engine": {"max_sequences": 1}, "pool": {"preload": ["a+x"]}}) as w:
        await w.advance(5)
        running = w.send("a+x", tokens=500)
        await w.advance(0.1)
        waiting = w.send("a+x", prompt="later")
        await w.advance(0.1)
        unload = w.task(w.pool.unload("a"))
        await w.advance(0.1)
        assert isinstance(waiting.error, ModelUnloaded)
        assert not unload.done()
        await w.advance(30)
        assert unload.result()
        assert running.text == answer_text("hello", 0, 500)
        assert (w.state("a"), w.model("a+x").state) == ("unloaded", "unloaded")  # type: ignore[union-attr]


async def test_unloading_the_base_by_force_ends_the_adapters_requests() -> None:
    """They hold it as its own requests do."""
    async with world(MODELS) as w:
        await w.load("a+x")
        running = w.send("a+x", tokens=5000)
        await w.advance(1)
        assert await w.run(w.pool.unload("a", force=True), 5)
        assert "by force" in str(running.error)


async def test_unloading_an_adapter_leaves_its_base() -> None:
    """The base is ready for the next one."""
    async with world(MODELS) as w:
        await w.load("a+x")
        assert await w.run(w.pool.unload("a+x"))
        assert (w.state("a"), w.state("a+x")) == ("ready", "unloaded")


async def test_a_preloaded_adapter_keeps_its_base() -> None:
    """Both are loaded at the start, neither expires, and neither goes for another model."""
    async with world(MODELS, {"pool": {"preload": ["a+x"], "keep_alive": "0s", "memory": 90 * MB}}) as w:
        await w.advance(60)
        assert (w.state("a"), w.state("a+x")) == ("ready", "ready")
        assert loads(w) == ["load a", "load a+x"]
        assert w.pool.ready
        with pytest.raises(DoesNotFit):
            await w.run(w.answer("big"))


async def test_a_pinned_adapter_pins_its_base_while_it_is_loaded() -> None:
    """The pins' sum counts both, and a limit below it is refused."""
    async with world(MODELS, {"models": {"a+x": {"pin": True}}}) as w:
        await w.load("a+x")
        with pytest.raises(InsufficientCapacity, match=r"a 3.* \+ a\+x"):
            w.change({"pool": {"memory": 33 * MB}})
        await w.advance(7200)
        assert (w.state("a"), w.state("a+x")) == ("ready", "ready")


async def test_adapters_do_not_count_against_max_models() -> None:
    """One model and its adapters are one model; another one replaces all of them."""
    async with world(MODELS, {"pool": {"max_models": 1}}) as w:
        await w.load("a+x", "a+y")
        assert w.pool.status().over_limit is None
        client = w.send("b", tokens=5)
        await w.advance(5)
        assert client.done
        assert loads(w)[3:] == ["unload a+x", "unload a+y", "unload a", "load b"]


async def test_a_lowered_limit_takes_base_and_adapter_as_one() -> None:
    """The plan names both, and so it happens."""
    async with world(MODELS) as w:
        await w.load("a+x", "b")
        plan = w.change({"pool": {"memory": 40 * MB}})
        assert [victim.id for victim in plan.evicting] == ["a+x", "a"]
        await w.advance(5)
        assert (w.state("a"), w.state("a+x"), w.state("b")) == ("unloaded", "unloaded", "ready")


async def test_a_base_that_leaves_the_disk_takes_its_adapters() -> None:
    """No new leases, the running request ends, both unload, and then there is no such model."""
    async with world(MODELS) as w:
        await w.load("a+x")
        running = w.send("a+x", tokens=500)
        await w.advance(0.5)
        for name in ("a", "a+x", "a+y"):
            del w.catalog.index[name]
        w.pool.rescan()
        with pytest.raises(ModelNotFound):
            await w.run(w.answer("a+x"))
        await w.advance(30)
        assert running.text == answer_text("hello", 0, 500)
        assert loads(w)[-2:] == ["unload a+x", "unload a"]


async def test_a_base_that_goes_while_an_adapter_loads() -> None:
    """The load of the adapter is aborted, then the base goes; a request that waits gets both back."""
    async with world(MODELS) as w:
        await w.load("a")
        client = w.send("a+x")
        await w.advance(0.5)
        assert w.state("a+x") == "loading"
        unload = w.task(w.pool.unload("a"))
        await w.advance(0.1)
        assert isinstance(client.error, ModelUnloaded)
        again = w.send("a+x")
        await w.advance(10)
        assert unload.done()
        assert again.text == answer_text("hello", 0, 10)
        assert loads(w) == ["load a", "load a+x", "abort a+x", "unload a", "load a", "load a+x"]


async def test_a_change_while_an_adapter_loads_on_a_base_that_goes() -> None:
    """What the change would do is rehearsed with both under way, and what it begins is what was planned."""
    async with world(MODELS) as w:
        await w.load("a")
        w.backend.abort_s = 1
        w.send("a+x")
        await w.advance(0.5)
        w.task(w.pool.unload("a"))
        await w.advance(0.1)
        assert (w.state("a"), w.state("a+x")) == ("draining", "loading")
        plan = w.change({"pool": {"memory": 90 * MB}})
        assert (plan.evicting, plan.loading) == ((), ())
        await w.advance(5)
        assert loads(w) == ["load a", "load a+x", "abort a+x", "unload a"]


async def test_uses_of_an_adapter_keep_its_base_under_lfu() -> None:
    """A base whose adapters are often used stays, and a model that was used less goes."""
    async with world({**MODELS, "c": 45}, {"pool": {"policy": "lfu"}}) as w:
        for seed in range(3):
            await w.run(w.answer("a+x", seed=seed))
        await w.run(w.answer("b"))
        await w.run(w.answer("c"))
        assert (w.state("a"), w.state("a+x"), w.state("b")) == ("ready", "ready", "unloaded")
