"""Changing settings under load: each row of the promise is a test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mlxd.pool.status import Victim
from mlxd.protocol.errors import InsufficientCapacity, InvalidValue, RequestCancelled
from tests.support.fake_row import answer_text
from tests.support.pool_world import MB, USABLE_BYTES, settings, world


async def test_limit_lowered_and_idle_models_suffice() -> None:
    """The reply names victims and bytes; they are gone when the device has freed them, and the stream goes on."""
    async with world({"a": 30, "b": 40}) as w:
        await w.load("b")
        stream = w.send("a", tokens=400)
        await w.advance(2)

        begun = w.change({"pool": {"memory": 60 * MB}})
        assert begun.evicting == (Victim("b", 43_535_000),)
        assert (begun.draining, begun.over_limit, begun.limit_bytes) == ((), None, 60 * MB)
        assert w.state("b") == "unloading"

        assert await w.run(w.pool.wait_settled(begun)) == ()
        assert w.state("b") == "unloaded"
        await w.advance(10)
        assert stream.text == answer_text("hello", 0, 400)


async def test_limit_lowered_and_the_victim_is_busy() -> None:
    """Committed at once; the model drains, nothing loads meanwhile, the stream ends whole, then it unloads."""
    async with world({"a": 60, "b": 20}) as w:
        stream = w.send("a", tokens=800)
        await w.advance(2)

        begun = w.change({"pool": {"memory": 40 * MB}})
        assert [(model.id, model.requests) for model in begun.draining] == [("a", 1)]
        assert begun.over_limit == "draining a (1 request, 0 s)"
        meanwhile = w.send("b")
        await w.advance(2)
        assert w.pool.status().over_limit == "draining a (1 request, 2 s)"
        assert w.state("b") == "queued"

        await w.advance(20)
        assert stream.text == answer_text("hello", 0, 800)
        assert w.state("a") == "unloaded"
        assert meanwhile.text
        assert w.pool.status().over_limit is None


async def test_waiting_for_a_drain_ends_with_its_reason() -> None:
    """`--wait` waits for `pool.drain_timeout`, then says what is still busy; the drain goes on."""
    async with world({"a": 60}, {"pool": {"drain_timeout": "5s"}}) as w:
        stream = w.send("a", tokens=1500)
        await w.advance(2)
        begun = w.change({"pool": {"memory": 40 * MB}})

        assert await w.run(w.pool.wait_settled(begun)) == ("draining a (1 request, 5 s)",)
        assert await w.run(w.pool.wait_settled(begun, timeout_s=60)) == ()
        assert len(stream.text) == 1500


async def test_a_model_that_leaves_the_disk_is_waited_for_no_longer() -> None:
    """What a change unloads and the disk then loses disturbs neither who waits for the rest nor any other request."""
    async with world({"a": 40, "b": 40, "c": 10}) as w:
        await w.load("a")
        stream = w.send("b", tokens=300)
        await w.advance(2)
        begun = w.change({"pool": {"memory": 30 * MB}})
        assert begun.model_ids == ("a", "b")
        settled = w.task(w.pool.wait_settled(begun))
        await w.advance(1)
        assert (w.state("a"), w.state("b")) == ("unloaded", "draining")

        del w.catalog.index["a"]
        w.pool.rescan()
        other = w.send("c")
        await w.advance(10)
        assert settled.result() == ()
        assert len(stream.text) == 300
        assert other.text
        assert await w.pool.wait_settled(begun) == ()


async def test_a_preload_that_leaves_the_disk_is_waited_for_no_longer() -> None:
    """A change that would load it has come to its end."""
    async with world({"a": 40}) as w:
        begun = w.change({"pool": {"preload": ["a"]}})
        assert begun.loading == ("a",)
        settled = w.task(w.pool.wait_settled(begun))
        await w.settle()
        del w.catalog.index["a"]
        w.pool.rescan()
        await w.advance(10)
        w.pool.rescan()
        await w.settle()
        assert settled.result() == ()


async def test_a_drain_can_be_forced() -> None:
    """`--force` ends the streams of draining models with an error, and of no others."""
    async with world({"a": 40, "b": 40}) as w:
        victim, other = w.send("a", tokens=15_000), w.send("b", tokens=300)
        await w.advance(2)
        begun = w.change({"pool": {"memory": 50 * MB}})
        assert [model.id for model in begun.draining] == ["a"]

        assert w.pool.force_drain(model.id for model in begun.draining) == 1
        assert w.pool.force_drain(["b", "nothing"]) == 0
        assert await w.run(w.pool.wait_settled(begun)) == ()

        assert isinstance(victim.error, RequestCancelled)
        await w.advance(10)
        assert len(other.text) == 300


async def test_limit_lowered_pauses_when_the_models_themselves_fit() -> None:
    """Two busy models whose least fits both stay: the younger stream pauses, and both end whole."""
    async with world({"a": 30, "b": 30}) as w:
        old = w.send("a", prompt="o" * 6000, tokens=600)
        young = w.send("b", prompt="y" * 6000, tokens=600)
        await w.advance(2)

        begun = w.change({"pool": {"memory": 74 * MB}})
        assert (begun.evicting, begun.draining) == ((), ())
        await w.advance(0.1)
        assert w.pool.status().over_limit is None
        assert [model.paused for model in w.pool.status().models] == [0, 1]

        await w.advance(20)
        assert old.text == answer_text("o" * 6000, 0, 600)
        assert young.text == answer_text("y" * 6000, 0, 600)


async def test_limit_below_the_pinned_models_is_refused() -> None:
    """The refusal lists the pins with their sizes and the sum, and what to do; nothing has changed."""
    async with world({"a": 30, "b": 40}, {"models": {"a": {"pin": True}, "b": {"pin": True}}}) as w:
        await w.load("a", "b")
        with pytest.raises(InsufficientCapacity) as refused:
            w.change({"pool": {"memory": 60 * MB}})

        error = refused.value
        assert error.message == (
            "memory limit 60.0 MB (57.2 MiB) is below the pinned models: "
            "a 33.0 MB (31.5 MiB) + b 43.5 MB (41.5 MiB) = 76.6 MB (73.0 MiB)"
        )
        assert (error.code, error.exit_code) == ("pool.pinned_exceeds_limit", 6)
        assert error.hint is not None
        assert "mlxctl model unpin a" in error.hint
        assert error.data["pinned_bytes"] == 76_570_000
        assert (w.state("a"), w.state("b")) == ("ready", "ready")


async def test_limit_below_the_pinned_models_by_force() -> None:
    """With force the pins stay, the pool is over its limit and says so, and nothing else loads."""
    async with world({"a": 30, "b": 40, "c": 10}, {"models": {"a": {"pin": True}, "b": {"pin": True}}}) as w:
        await w.load("a", "b")
        begun = w.change({"pool": {"memory": 60 * MB}}, force=True)
        assert (begun.evicting, begun.draining) == ((), ())
        assert begun.over_limit == "a is pinned, b is pinned"
        assert w.pool.status().over_limit == "a is pinned, b is pinned"
        waiting = w.send("c")
        await w.advance(1)

        assert waiting.error is not None
        assert (w.state("a"), w.state("b"), w.state("c")) == ("ready", "ready", "unloaded")


async def test_an_old_trouble_does_not_block_another_change() -> None:
    """After a limit was forced below the pins, an unrelated setting can still be changed."""
    async with world({"a": 30}, {"models": {"a": {"pin": True}}}) as w:
        w.change({"pool": {"memory": 20 * MB}}, force=True)

        w.change({"pool": {"keep_alive": "5m"}})


@pytest.mark.parametrize(
    "step",
    [
        {"pool": {"memory": 60 * MB, "max_models": 1}, "models": {"a": {"pin": True}, "b": {"pin": True}}},
        {"pool": {"memory": 20 * MB, "max_models": 2}, "models": {"a": {"pin": True}, "b": {"pin": True}}},
        {"pool": {"memory": 20 * MB, "max_models": 1}, "models": {"a": {"pin": True}}},
    ],
    ids=["a higher limit", "more models", "an unpin"],
)
async def test_an_old_trouble_does_not_block_a_step_out_of_it(step: Mapping[str, Any]) -> None:
    """What leaves the pinned models more room is taken, with a warning while it is not enough."""
    pins = {"a": {"pin": True}, "b": {"pin": True}}
    async with world({"a": 30, "b": 40}, {"models": pins}) as w:
        w.change({"pool": {"memory": 20 * MB, "max_models": 1}, "models": pins}, force=True)

        assert w.pool.check(settings(step), force=False) != []


async def test_limit_above_usable_memory_needs_force() -> None:
    """More than the machine has is refused with both numbers; with force it is a warning."""
    async with world({"a": 30}) as w:
        with pytest.raises(InsufficientCapacity, match=r"2\.0 GB .* above the usable memory, 1\.0 GB"):
            w.change({"pool": {"memory": 2 * USABLE_BYTES}})

        new = settings({"pool": {"memory": 2 * USABLE_BYTES}})
        assert len(w.pool.check(new, force=True)) == 1


async def test_limit_raised_starts_waiting_loads_at_once() -> None:
    """Requests and deferred preloads that had no room get it in the same turn."""
    async with world({"a": 60, "b": 60}) as w:
        stream = w.send("a", tokens=1000)
        await w.advance(2)
        waiting = w.send("b")
        await w.advance(1)
        assert w.state("b") == "queued"

        w.change({"pool": {"memory": 200 * MB}})
        assert w.state("b") == "loading"
        await w.advance(2)
        assert waiting.text
        assert not stream.done


async def test_limit_raised_loads_deferred_preloads() -> None:
    """A preload that was evicted by a lowered limit comes back when there is room again."""
    async with world({"a": 40}, {"pool": {"preload": ["a"]}}) as w:
        await w.advance(2)
        w.change({"pool": {"memory": 20 * MB}})
        await w.advance(2)
        assert w.state("a") == "unloaded"
        assert w.pool.status().preload[0].state == "deferred"
        assert "the memory limit is 20.0 MB" in str(w.pool.status().preload[0].reason)

        begun = w.change({"pool": {"memory": 100 * MB}})
        assert begun.loading == ("a",)
        await w.run(w.pool.wait_settled(begun))
        assert w.state("a") == "ready"


async def test_max_models_lowered() -> None:
    """As for the limit: idle models go at once, busy ones drain, and the reply says so."""
    async with world({"a": 10, "b": 10, "c": 10}) as w:
        await w.load("a", "b", "c")
        first, second = w.send("b", tokens=500), w.send("c", tokens=500)
        await w.advance(0.5)

        begun = w.change({"pool": {"max_models": 1}})
        assert [victim.id for victim in begun.evicting] == ["a"]
        assert [model.id for model in begun.draining] == ["b"]
        await w.advance(1)
        assert w.pool.status().over_limit == "draining b (1 request, 1 s)"

        await w.advance(20)
        assert len(first.text) == len(second.text) == 500
        assert (w.state("b"), w.state("c")) == ("unloaded", "ready")


async def test_max_models_is_enforced_on_loads() -> None:
    """One more load than the bound evicts one model, although memory is free."""
    async with world({"a": 10, "b": 10, "c": 10}, {"pool": {"max_models": 2}}) as w:
        await w.load("a", "b", "c")

        assert [w.state(model_id) for model_id in ("a", "b", "c")] == ["unloaded", "ready", "ready"]


async def test_max_models_below_the_pins_is_refused() -> None:
    """The bound cannot be lowered below the number of pinned models without force."""
    async with world({"a": 10, "b": 10}, {"models": {"a": {"pin": True}, "b": {"pin": True}}}) as w:
        with pytest.raises(InsufficientCapacity, match="below the 2 pinned models: a, b"):
            w.change({"pool": {"max_models": 1}})


async def test_the_same_settings_begin_nothing() -> None:
    """Applying what is live already moves nothing and tells the backend nothing."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.backend.limits = None
        begun = w.change({})

        assert begun.model_ids == ()
        assert w.backend.limits is None
        assert w.state("a") == "ready"


async def test_the_backend_follows_the_limit_and_the_pace() -> None:
    """MLX is told the limit and a tenth of it for free buffers, and how to schedule prefills, at once."""
    async with world({"a": 30}) as w:
        assert w.backend.limits is not None
        assert (w.backend.limits.memory_bytes, w.backend.limits.cache_bytes) == (100 * MB, 10 * MB)
        assert w.backend.scheduling is not None
        assert (w.backend.scheduling.prefill_step_tokens, w.backend.scheduling.target_gap_ms) == (None, 30)

        w.change({"pool": {"memory": 50 * MB}, "engine": {"prefill_step": 512, "target_gap": "50ms"}})

        assert w.backend.limits.memory_bytes == 50 * MB
        assert (w.backend.scheduling.prefill_step_tokens, w.backend.scheduling.target_gap_ms) == (512, 50)


async def test_the_prompt_cache_bound_changes_live() -> None:
    """A lowered bound shrinks the caches of loaded models, and a load that runs meanwhile ends with it."""
    async with world({"a": 30, "b": 30}) as w:
        await w.run(w.answer("a", prompt="x" * 3000))
        w.send("b")
        await w.advance(0.5)
        w.change({"engine": {"prompt_cache": "1MB"}})
        await w.advance(2)

        assert [engine.prompt_cache_limit_bytes for engine in w.backend.engines] == [MB, MB]
        model = w.model("a")
        assert model is not None
        assert model.prompt_cache_bytes <= MB


async def test_a_pin_protects_at_once_and_its_removal_frees_at_once() -> None:
    """A pinned model is no victim from that moment on; unpinned, it is ordinary again."""
    async with world({"a": 60, "b": 60}) as w:
        await w.load("a")
        w.change({"models": {"a": {"pin": True}}})
        refused = w.send("b")
        await w.advance(1)
        assert refused.error is not None
        assert w.state("a") == "ready"

        w.change({"models": {"a": {"pin": False}}})
        assert await w.run(w.answer("b"))
        assert w.state("a") == "unloaded"


async def test_an_unknown_pin_or_preload_is_refused_with_the_nearest() -> None:
    """A new name that is not on disk is refused; one that has left the disk does not block other changes."""
    async with world({"qwen": 30}) as w:
        with pytest.raises(InvalidValue, match=r"pool.preload: .*qwen"):
            w.change({"pool": {"preload": ["qwem"]}})
        with pytest.raises(InvalidValue, match=r"models.qwem.pin: .*qwen"):
            w.change({"models": {"qwem": {"pin": True}}})

        w.change({"pool": {"preload": ["qwen"]}})
        del w.catalog.index["qwen"]
        w.pool.rescan()
        w.change({"pool": {"keep_alive": "1m"}})


async def test_the_policy_changes_live() -> None:
    """The next eviction follows the new policy."""
    async with world({"a": 30, "b": 30, "c": 50}) as w:
        for seed in range(3):
            await w.run(w.answer("a", seed=seed))
        await w.run(w.answer("b"))
        w.change({"pool": {"policy": "lfu"}})
        await w.load("c")

        assert (w.state("a"), w.state("b")) == ("ready", "unloaded")


async def test_a_plan_changes_nothing() -> None:
    """`--dry-run` returns what would be begun, and begins nothing."""
    async with world({"a": 30, "b": 40, "c": 20}) as w:
        await w.load("b")
        w.send("a", tokens=400)
        await w.advance(2)
        new = settings({"pool": {"memory": 60 * MB, "preload": ["c"]}})

        planned = w.pool.plan(new)

        assert [victim.id for victim in planned.evicting] == ["b"]
        assert planned.loading == ("c",)
        assert (w.state("a"), w.state("b")) == ("ready", "ready")
        assert w.pool.apply(new) == planned


async def test_running_requests_finish_and_queued_ones_take_the_new_settings() -> None:
    """A preload and policy change while requests run leaves their streams alone."""
    async with world({"a": 30, "b": 30}) as w:
        stream = w.send("a", tokens=400)
        await w.advance(1.5)
        w.change({"pool": {"preload": ["b"], "policy": "lfu", "keep_alive": "0s"}})
        await w.advance(10)

        assert len(stream.text) == 400
        assert (w.state("a"), w.state("b")) == ("unloaded", "ready")


async def test_a_load_that_the_system_stops_is_waited_for() -> None:
    """What a change began to load and memory pressure aborted has not come to its end; what was never begun has."""
    async with world({"a": 20, "b": 20}) as w:
        w.backend.load_s = 5
        begun = w.change({"pool": {"preload": ["a", "b"]}})
        assert begun.loading == ("a", "b")
        settled = w.task(w.pool.wait_settled(begun, timeout_s=600))
        await w.advance(1)
        w.pool.report_pressure("the system is short of memory")
        await w.advance(1)
        assert not settled.done()
        await w.advance(60)
        assert settled.result() == ()
        assert (w.state("a"), w.state("b")) == ("ready", "ready")


async def test_a_list_that_does_not_fit_names_what_is_deferred_and_waits_for_the_rest() -> None:
    """Forced, the head of the list loads and behind it what still fits; the rest has its reason at once."""
    models = {"a": 30, "b": 30, "c": 60, "d": 10}
    async with world(models) as w:
        begun = w.change({"pool": {"preload": ["a", "b", "c", "d"]}}, force=True)
        assert begun.loading == ("a", "b", "d")
        assert [model.id for model in begun.deferred] == ["c"]
        assert await w.run(w.pool.wait_settled(begun)) == ()
        assert [w.state(model_id) for model_id in models] == ["ready", "ready", "unloaded", "ready"]
