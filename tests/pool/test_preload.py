"""The preload list."""

from __future__ import annotations

import pytest

from mlxd.protocol.errors import DoesNotFit, InsufficientCapacity, LoadFailed
from tests.support.pool_world import MB, World, entry, facts, world


def preload(w: World) -> dict[str, str]:
    """Return the state of each model of the list."""
    return {item.id: item.state for item in w.pool.status().preload}


def loads(w: World) -> list[str]:
    """Return the models in the order in which they were loaded."""
    return [call.removeprefix("load ") for call in w.backend.calls if call.startswith("load ")]


async def test_the_list_is_loaded_in_its_order_one_by_one() -> None:
    """At start the models load one after another, and the pool is ready when all are done with."""
    async with world({"a": 20, "b": 20, "c": 20}, {"pool": {"preload": ["c", "a", "b"]}}) as w:
        await w.advance(0.5)
        assert preload(w) == {"c": "loading", "a": "deferred", "b": "deferred"}
        assert not w.pool.ready

        await w.advance(5)
        assert loads(w) == ["c", "a", "b"]
        assert set(preload(w).values()) == {"loaded"}
        assert w.pool.ready


async def test_requests_loads_go_first() -> None:
    """A request's model loads before the rest of the list."""
    async with world({"a": 20, "b": 20, "c": 20}, {"pool": {"preload": ["a", "b"]}}) as w:
        await w.advance(0.5)
        client = w.send("c")
        await w.advance(0.9)
        assert loads(w) == ["a", "c"]
        assert (w.state("a"), w.state("c"), w.state("b")) == ("ready", "loading", "unloaded")
        await w.advance(3)

        assert client.text
        assert loads(w) == ["a", "c", "b"]


async def test_boot_is_never_fatal() -> None:
    """Models that are missing, broken or too big are reported, and the others load."""
    document = {"pool": {"preload": ["missing", "huge", "broken", "a"]}}
    made = World({"a": 20, "huge": 500, "broken": 20}, document)
    made.backend.fail_load("broken", LoadFailed("bad magic"))
    await made.pool.start()
    await made.advance(3)

    assert preload(made) == {"missing": "failed", "huge": "deferred", "broken": "failed", "a": "loaded"}
    reasons = {item.id: item.reason for item in made.pool.status().preload}
    assert "there is no model" in str(reasons["missing"])
    assert "the memory limit is 100.0 MB" in str(reasons["huge"])
    assert reasons["broken"] == "bad magic"
    assert made.pool.ready
    await made.close()


async def test_a_failed_preload_is_tried_again_after_its_backoff() -> None:
    """The list is desired state: 5 s after the failure the model is loaded again, without a request."""
    made = World({"a": 20}, {"pool": {"preload": ["a"]}})
    made.backend.fail_load("a", LoadFailed("the disk was away"))
    await made.pool.start()
    await made.advance(5.5)
    assert preload(made) == {"a": "failed"}
    await made.advance(2)

    assert preload(made) == {"a": "loaded"}
    await made.close()


async def test_a_preloaded_model_neither_expires_nor_yields_to_a_load() -> None:
    """Another model that does not fit beside it is refused; it stays forever."""
    async with world({"a": 60, "b": 60}, {"pool": {"preload": ["a"], "keep_alive": "1s"}}) as w:
        await w.advance(100)
        with pytest.raises(DoesNotFit, match="a keeps"):
            await w.answer("b")

        assert w.state("a") == "ready"


async def test_a_preload_evicts_idle_ordinary_models() -> None:
    """A model that joins the list makes room for itself as a request's load would."""
    async with world({"a": 60, "b": 60}) as w:
        await w.load("a")
        begun = w.change({"pool": {"preload": ["b"]}})
        assert ([victim.id for victim in begun.evicting], begun.loading) == (["a"], ("b",))

        assert await w.run(w.pool.wait_settled(begun)) == ()
        assert (w.state("a"), w.state("b")) == ("unloaded", "ready")


async def test_a_preload_waits_for_busy_models() -> None:
    """It drains nobody; it is deferred with the reason until there is room."""
    async with world({"a": 60, "b": 60}) as w:
        stream = w.send("a", tokens=6000)
        await w.advance(2)
        begun = w.change({"pool": {"preload": ["b"]}})
        assert [model.id for model in begun.deferred] == ["b"]
        await w.advance(50)
        assert preload(w) == {"b": "deferred"}
        assert "a has 1 request" in str(w.pool.status().preload[0].reason)

        await w.advance(15)
        assert len(stream.text) == 6000
        assert preload(w) == {"b": "loaded"}


async def test_a_model_that_leaves_the_list_is_ordinary() -> None:
    """It stays loaded, but may be evicted and expires."""
    async with world({"a": 60, "b": 60}, {"pool": {"preload": ["a"]}}) as w:
        await w.advance(2)
        w.change({"pool": {"preload": []}})
        assert w.state("a") == "ready"

        assert await w.run(w.answer("b"))
        assert w.state("a") == "unloaded"


async def test_a_list_that_cannot_fit_is_refused_with_the_sum() -> None:
    """The refusal names each model and the sum; with force the tail is deferred."""
    async with world({"a": 60, "b": 60}) as w:
        with pytest.raises(InsufficientCapacity, match=r"a 64\.5 MB .* \+ b 64\.5 MB .* = 129\.1 MB"):
            w.change({"pool": {"preload": ["a", "b"]}})
        with pytest.raises(InsufficientCapacity, match="max_models 1 is below the 2 preloaded and pinned models"):
            w.change({"pool": {"preload": ["a", "b"], "memory": 200 * MB, "max_models": 1}})

        begun = w.change({"pool": {"preload": ["a", "b"]}}, force=True)
        assert begun.loading == ("a",)
        assert [model.id for model in begun.deferred] == ["b"]
        await w.advance(3)
        assert preload(w) == {"a": "loaded", "b": "deferred"}


async def test_a_list_can_always_be_shortened() -> None:
    """Taking a model off a list that has become too big is not refused."""
    async with world({"a": 30, "b": 30, "c": 30}, {"pool": {"preload": ["a", "b", "c"], "memory": 110 * MB}}) as w:
        await w.advance(4)
        w.change({"pool": {"memory": 40 * MB}})

        w.change({"pool": {"preload": ["a", "b"]}})


async def test_preloads_yield_to_a_lowered_limit_after_all_others() -> None:
    """The ordinary model goes first; the preloaded one only when that is not enough."""
    async with world({"a": 30, "b": 30}, {"pool": {"preload": ["a"]}}) as w:
        await w.advance(2)
        await w.load("b")
        w.change({"pool": {"memory": 50 * MB}})
        await w.advance(1)
        assert (w.state("a"), w.state("b")) == ("ready", "unloaded")

        w.change({"pool": {"memory": 20 * MB}})
        await w.advance(1)
        assert w.state("a") == "unloaded"


async def test_unload_by_command_keeps_a_preload_away() -> None:
    """It stays away until a request, a command or a new list brings it back."""
    async with world({"a": 30}, {"pool": {"preload": ["a"]}}) as w:
        await w.advance(2)
        await w.run(w.pool.unload("a"))
        await w.advance(10)
        assert preload(w) == {"a": "deferred"}
        assert "unloaded by command" in str(w.pool.status().preload[0].reason)
        assert w.pool.ready

        assert await w.run(w.answer("a"))
        await w.run(w.pool.unload("a"))
        w.change({"pool": {"preload": []}})
        w.change({"pool": {"preload": ["a"]}})
        await w.advance(2)
        assert preload(w) == {"a": "loaded"}


async def test_a_model_that_appears_on_disk_is_preloaded() -> None:
    """A rescan that finds a missing model of the list loads it."""
    async with world({"a": 30}, {"pool": {"preload": ["new", "a"]}}) as w:
        await w.advance(2)
        assert preload(w) == {"new": "failed", "a": "loaded"}
        w.catalog.index["new"] = entry("new", facts(MB))
        w.pool.rescan()
        await w.advance(2)

        assert preload(w) == {"new": "loaded", "a": "loaded"}


async def test_settling_waits_for_the_loads_of_a_list() -> None:
    """`--wait` returns when the whole list is loaded, or names what is not."""
    async with world({"a": 20, "b": 20}) as w:
        begun = w.change({"pool": {"preload": ["a", "b"]}})
        assert await w.run(w.pool.wait_settled(begun, timeout_s=0.5)) == (
            "b is not loaded: it waits for other loads",
            "loading a",
        )
        assert await w.run(w.pool.wait_settled(begun)) == ()
        assert preload(w) == {"a": "loaded", "b": "loaded"}
