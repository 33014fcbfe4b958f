"""Loads: failures and their backoff, sizes, commands, and what can never fit."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from mlxd.engine.base import GenerationRequest, TextPrompt
from mlxd.pool.lifecycle import ModelState
from mlxd.protocol.errors import DoesNotFit, LoadFailed, ModelNotFound, ModelUnloaded, RequestCancelled
from tests.support.pool_world import MB, OTHER_FILES, TURNS, entry, facts, world

BROKEN = LoadFailed("bad magic in model.safetensors")


async def test_a_failed_load_is_not_repeated_during_its_backoff() -> None:
    """For 5 s after a failure, requests get the cause at once; then the next one tries again."""
    async with world({"a": 30}) as w:
        w.backend.fail_load("a", BROKEN)
        first = w.send("a")
        await w.advance(1.5)
        assert isinstance(first.error, LoadFailed)
        second = w.send("a")
        await w.settle()
        assert isinstance(second.error, LoadFailed)
        assert "bad magic in model.safetensors" in str(second.error)
        assert "not tried again for 4 s" in str(second.error) or "not tried again for 5 s" in str(second.error)
        assert w.backend.calls == ["load a"]

        await w.advance(5)
        assert await w.run(w.answer("a"))


async def test_the_backoff_doubles_up_to_five_minutes() -> None:
    """Failures in a row wait 5, 10, 20 ... 300, 300 seconds; a success begins anew."""
    async with world({"a": 30}) as w:
        waits = []
        for _ in range(8):
            w.backend.fail_load("a", BROKEN)
            with pytest.raises(LoadFailed):
                await w.run(w.pool.load("a"))
            waits.append(round(w.pool._state.residents["a"].backoff.retry_s - w.clock.now()))
        assert waits == [5, 10, 20, 40, 80, 160, 300, 300]

        await w.load("a")
        await w.run(w.pool.unload("a"))
        w.backend.fail_load("a", BROKEN)
        with pytest.raises(LoadFailed):
            await w.run(w.pool.load("a"))
        assert round(w.pool._state.residents["a"].backoff.retry_s - w.clock.now()) == 5


async def test_a_command_tries_at_once() -> None:
    """`model load` does not wait for the backoff."""
    async with world({"a": 30}) as w:
        w.backend.fail_load("a", BROKEN)
        with pytest.raises(LoadFailed):
            await w.run(w.pool.load("a"))
        assert w.state("a") == "failed"

        await w.load("a")
        assert w.state("a") == "ready"


async def test_a_failed_load_gives_its_memory_back() -> None:
    """After a failure nothing is reserved, and the status tells the cause."""
    async with world({"a": 30}) as w:
        w.backend.fail_load("a", BROKEN)
        w.send("a")
        await w.advance(0.5)
        assert w.pool.status().memory.loading_bytes > 30 * MB
        await w.advance(1)

        assert w.pool.status().memory.reserved_bytes == 0
        model = w.model("a")
        assert model is not None
        assert (model.state, model.last_error) == ("failed", "bad magic in model.safetensors")
        assert model.reason is not None


async def test_an_unexpected_exception_of_a_load_is_a_failed_load() -> None:
    """A backend that breaks its contract does not leave the model loading forever."""
    async with world({"a": 30}) as w:

        async def explode(*_: object) -> None:
            raise ZeroDivisionError("oops")

        w.backend.load = explode  # type: ignore[method-assign, assignment]
        client = w.send("a")
        await w.settle()

        assert isinstance(client.error, LoadFailed)
        assert "oops" in str(client.error)
        assert w.state("a") == "failed"


async def test_what_can_never_fit_evicts_nobody() -> None:
    """P10: a model above the limit is refused at once, and the idle models stay."""
    async with world({"a": 30, "b": 40, "huge": 400}) as w:
        await w.load("a", "b")
        with pytest.raises(DoesNotFit, match=r"421\.5 MB .*the memory limit is 100\.0 MB"):
            await w.answer("huge")

        assert (w.state("a"), w.state("b")) == ("ready", "ready")
        assert w.kinds("huge") == []


async def test_what_cannot_fit_beside_pinned_models_names_them() -> None:
    """P10: a model that would fit alone, but not beside a pinned one, is refused at once too."""
    async with world({"a": 50, "b": 60}, {"models": {"a": {"pin": True}}}) as w:
        await w.load("a")
        with pytest.raises(DoesNotFit, match="a keeps"):
            await w.answer("b")

        assert w.state("a") == "ready"


async def test_a_load_by_force_passes_a_wrong_estimate() -> None:
    """`model load --force` loads what is said not to fit; it turns out smaller, and is served."""
    async with world({"a": 30, "b": 90}) as w:
        w.backend.models["b"] = facts(60 * MB)
        w.catalog.index["b"] = entry("b", facts(200 * MB))
        await w.load("a")
        with pytest.raises(DoesNotFit) as refused:
            await w.run(w.pool.load("b"))
        assert "--force" in str(refused.value.hint)

        await w.run(w.pool.load("b", force=True))

        assert (w.state("a"), w.state("b")) == ("unloaded", "ready")
        assert w.pool.status().over_limit is None
        assert await w.run(w.answer("b"))


async def test_a_load_by_force_that_was_right_is_over_the_limit_and_says_so() -> None:
    """Forced models stay until they are unloaded by command, and nothing else loads meanwhile."""
    async with world({"a": 30, "huge": 200}) as w:
        await w.run(w.pool.load("huge", force=True))
        assert w.pool.status().over_limit == "huge is loaded by force"
        with pytest.raises(DoesNotFit):
            await w.answer("a")

        await w.run(w.pool.unload("huge"))
        assert w.pool.status().over_limit is None
        assert w.model("huge") is None
        assert await w.run(w.answer("a"))


async def test_measured_sizes_replace_the_estimate() -> None:
    """After the load, status and ledger have what was measured, and the next estimate is that."""
    async with world({"a": 30}) as w:
        w.catalog.index["a"] = entry("a", facts(20 * MB))
        client = w.send("a", tokens=100)
        await w.advance(0.5)
        loading = w.model("a")
        assert loading is not None
        assert (loading.weights_bytes, loading.estimated) == (20 * MB, True)

        await w.advance(1)
        ready = w.model("a")
        assert ready is not None
        assert (ready.weights_bytes, ready.estimated) == (30 * MB, False)
        assert not client.error


async def test_a_model_that_measures_too_big_makes_room_for_itself() -> None:
    """When the estimate was too small, idle models give way after the load."""
    async with world({"a": 40, "b": 80}) as w:
        w.catalog.index["b"] = entry("b", facts(40 * MB))
        await w.load("a")
        client = w.send("b")
        await w.advance(3)

        assert client.text
        assert (w.state("a"), w.state("b")) == ("unloaded", "ready")
        assert w.pool.status().over_limit is None


async def test_progress_is_reported() -> None:
    """Every slice of a load is an event without a log line, and the status has the bytes."""
    async with world({"a": 40}) as w:
        w.send("a")
        await w.advance(0.6)
        model = w.model("a")
        assert model is not None
        assert (model.load_done_bytes, model.load_total_bytes) == (20 * MB, 40 * MB)
        progress = [event for event in w.events if event.kind == "model.load_progress"]

        assert [event.data["done"] for event in progress] == [10 * MB, 20 * MB]
        assert all(event.message == "" for event in progress)


async def test_a_load_evicts_and_unloads_by_lru() -> None:
    """The model whose lease ended longest ago makes room, whatever was started first."""
    async with world({"a": 30, "b": 30, "c": 50}) as w:
        long = w.send("a", tokens=900)
        await w.advance(2)
        await w.run(w.answer("b"))
        await w.advance(15)
        assert long.text
        await w.run(w.answer("c"))

        assert (w.state("a"), w.state("b"), w.state("c")) == ("ready", "unloaded", "ready")


async def test_lfu_evicts_the_least_used() -> None:
    """Under lfu the model with fewer requests goes, though it was used last."""
    async with world({"a": 30, "b": 30, "c": 50}, {"pool": {"policy": "lfu"}}) as w:
        for seed in range(3):
            await w.run(w.answer("a", seed=seed))
        await w.run(w.answer("b"))
        await w.run(w.answer("c"))

        assert (w.state("a"), w.state("b")) == ("ready", "unloaded")


@pytest.mark.parametrize(("hours", "leaves"), [(6, "b"), (18, "a")])
async def test_lfu_forgets_old_uses(hours: int, leaves: str) -> None:
    """Four uses weigh more than one after 6 hours, when they count two; after 18 hours they count a half."""
    document = {"pool": {"policy": "lfu", "keep_alive": "never"}}
    async with world({"a": 30, "b": 30, "c": 50}, document) as w:
        for seed in range(4):
            await w.run(w.answer("a", seed=seed))
        await w.advance(3600 * hours)
        await w.run(w.answer("b"))
        await w.run(w.answer("c"))

        assert [name for name in ("a", "b") if w.state(name) == "unloaded"] == [leaves]


async def test_two_loads_at_the_bound_evict_two_models_at_once() -> None:
    """The second of two loads counts the place that the first was promised, and makes one for itself."""
    async with world({"a": 10, "b": 10, "c": 10, "d": 10}, {"pool": {"max_models": 2}}) as w:
        await w.load("a", "b")
        clients = [w.send("c"), w.send("d")]
        await w.settle()
        assert (w.state("a"), w.state("b")) == ("unloading", "unloading")

        await w.advance(3)
        assert all(client.text for client in clients)


async def test_unload_by_command_ends_queued_requests() -> None:
    """Requests that wait for the model get `model_unloaded` with a time to come back; the load completes and goes."""
    async with world({"a": 30}) as w:
        client = w.send("a")
        await w.advance(0.5)
        unload = w.task(w.pool.unload("a"))
        await w.settle()
        assert isinstance(client.error, ModelUnloaded)
        assert client.error.retry_after_s is not None

        await w.advance(2)
        assert unload.result() is True
        assert w.state("a") == "unloaded"


async def test_eviction_keeps_requests_queued() -> None:
    """A request that comes while its model is evicted for another one waits, and is answered by the reload."""
    async with world({"a": 60, "b": 60}) as w:
        await w.load("a")
        other = w.send("b")
        await w.settle()
        assert w.state("a") == "unloading"
        waiting = w.send("a")
        await w.settle()
        assert [wait.reason for wait in w.pool.status().queue if wait.model == "a"] == [
            "a is being unloaded and will be loaded again"
        ]
        await w.advance(10)
        assert (bool(other.text), bool(waiting.text)) == (True, True)


async def test_unload_by_command_ends_what_waits_for_a_slot() -> None:
    """A request without a slot gets `model_unloaded`; the one that runs ends whole."""
    async with world({"a": 30}, {"engine": {"max_sequences": 1}}) as w:
        running = w.send("a", tokens=300)
        await w.advance(1.5)
        waiting = w.send("a", seed=1)
        await w.settle()
        unload = w.task(w.pool.unload("a"))
        await w.settle()
        assert isinstance(waiting.error, ModelUnloaded)

        await w.advance(10)
        assert len(running.text) == 300
        assert unload.result() is True


async def test_unload_by_force_ends_running_requests() -> None:
    """`--force` gives streams an error and frees the model within a step."""
    async with world({"a": 30}) as w:
        running = w.send("a", tokens=10_000)
        await w.advance(2)
        assert await w.run(w.pool.unload("a", force=True), seconds=1) is True

        assert isinstance(running.error, RequestCancelled)
        assert w.backend.active_bytes == 0


async def test_unload_by_force_does_not_wait_for_a_lease_that_does_nothing() -> None:
    """A lease whose client reads slowly, or still prepares, is void after `--force`; using it says so."""
    async with world({"a": 30}) as w:
        await w.load("a")
        request = GenerationRequest(TextPrompt("hello"), max_tokens=5)
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(request)
            assert await w.run(w.pool.unload("a", force=True), seconds=1) is True
            with pytest.raises(RequestCancelled):
                await lease.prepare(request)
            with pytest.raises(RequestCancelled):
                await anext(lease.generate(request, prompt))

        assert w.pool.queue_length == 0


async def test_unload_of_what_is_not_loaded() -> None:
    """An unloaded model is no error and no work; an unknown one is an error."""
    async with world({"a": 30}) as w:
        assert await w.run(w.pool.unload("a")) is False
        with pytest.raises(ModelNotFound):
            await w.pool.unload("b")


async def test_unload_returns_although_the_model_is_wanted_again() -> None:
    """The command is done when the model was gone once, even if a request has it loaded again at once."""
    async with world({"a": 30}) as w:
        w.send("a", tokens=100)
        await w.advance(1.2)
        unload = w.task(w.pool.unload("a"))
        await w.settle()
        again = w.send("a", seed=1)
        await w.advance(10)

        assert unload.result() is True
        assert again.text
        assert w.state("a") == "ready"


async def test_a_model_that_left_the_disk_drains_and_is_gone() -> None:
    """Its stream ends whole, it unloads, and it is 404 from the moment it left."""
    async with world({"a": 30}) as w:
        stream = w.send("a", tokens=300)
        await w.advance(1.5)
        del w.catalog.index["a"]
        w.pool.rescan()
        assert w.state("a") == "draining"
        with pytest.raises(ModelNotFound):
            await w.answer("a")

        await w.advance(10)
        assert len(stream.text) == 300
        assert w.state("a") == "unloaded"
        w.pool.rescan()
        assert w.model("a") is None


async def test_a_model_that_left_the_disk_while_requests_waited() -> None:
    """Requests that wait for its load are told at once."""
    async with world({"a": 30}) as w:
        waiting = w.send("a")
        await w.advance(0.5)
        del w.catalog.index["a"]
        w.pool.rescan()
        await w.settle()
        assert isinstance(waiting.error, ModelNotFound)

        await w.advance(3)
        assert w.state("a") == "unloaded"


async def test_files_that_change_during_a_load_do_not_change_its_reservation() -> None:
    """What runs beside it is not paused, and nothing is evicted, for bytes that this load will never take."""
    async with world({"a": 30, "b": 30}) as w:
        await w.load("b")
        client = w.send("a")
        await w.advance(0.5)
        before = w.pool.status().memory
        w.catalog.index["a"] = entry("a", facts(90 * MB))
        w.pool.rescan()
        assert w.pool.status().memory == before

        await w.advance(2)
        assert client.text
        assert w.state("b") == "ready"


async def test_a_reset_begins_the_backoff_anew() -> None:
    """After it the next failure counts as the first, and there is nothing more to reset."""
    async with world({"a": 30}) as w:
        for _ in range(2):
            w.backend.fail_load("a", BROKEN)
            w.task(w.pool.load("a")).add_done_callback(lambda task: task.exception())
            await w.advance(2)
        assert (w.pool.reset("a"), w.pool.reset("a")) == (True, False)
        w.backend.fail_load("a", BROKEN)
        w.send("a")
        await w.advance(2)
        failed = [event for event in w.events if event.kind == "model.load_failed"]
        assert [event.data["retry_in_s"] for event in failed] == [5, 10, 5]


async def test_new_files_end_the_backoff() -> None:
    """A model that was pulled again is tried again without waiting; one that is only estimated otherwise is not."""
    async with world({"a": 30}) as w:
        w.backend.fail_load("a", BROKEN)
        w.send("a")
        await w.advance(1.5)
        w.catalog.index["a"] = entry("a", facts(31 * MB))
        w.pool.rescan()
        with pytest.raises(LoadFailed, match="bad magic"):
            await w.answer("a")

        w.catalog.index["a"] = entry("a", facts(31 * MB), signature=OTHER_FILES)
        w.pool.rescan()
        assert await w.run(w.answer("a"))


async def test_p8_all_loads_take_the_same_path() -> None:
    """Explicit, on-demand and preload loads give the engine the same bounds and the same events."""
    async with world({"a": 20, "b": 20, "c": 20}, {"pool": {"preload": ["a"]}}) as w:
        await w.advance(2)
        await w.load("b")
        await w.run(w.answer("c"))

        assert [engine.prompt_cache_limit_bytes for engine in w.backend.engines] == [2**50] * 3
        assert w.kinds("a") == w.kinds("b") == w.kinds("c") == ["loading", "loaded"]


async def test_after_everything_is_unloaded_nothing_is_held() -> None:
    """P12: ledger and device agree at nothing."""
    async with world({"a": 20, "b": 20}) as w:
        await w.run(w.answer("a", tokens=500))
        await w.run(w.answer("b", prompt="x" * 900))
        assert w.pool.status().memory.reserved_bytes >= w.backend.active_bytes
        await w.run(w.pool.unload("a"))
        await w.run(w.pool.unload("b"))

        assert w.pool.status().memory.reserved_bytes == 0
        assert w.backend.active_bytes == 0


async def test_a_refused_model_is_loaded_by_nobody_until_it_is_reset() -> None:
    """Requests, commands and the preload list get the cause and evict nobody; after `reset` the list brings it."""
    async with world({"a": 60, "b": 60}) as w:
        w.pool.refuse("b", BROKEN)
        await w.load("a")
        client = w.send("b")
        await w.settle()
        assert isinstance(client.error, LoadFailed)
        with pytest.raises(LoadFailed, match="bad magic"):
            await w.pool.load("b", force=True)
        planned = w.change({"pool": {"preload": ["b"]}})
        assert [(model.id, model.reason) for model in planned.deferred] == [("b", BROKEN.message)]
        await w.advance(1000)
        assert w.kinds("b") == []
        assert (w.state("a"), w.state("b")) == ("ready", "failed")
        assert w.pool.ready
        model = w.model("b")
        assert model is not None
        assert "mlxctl model reset b" in str(model.reason)

        assert w.pool.reset("b")
        await w.advance(10)
        assert w.state("b") == "ready"
        assert not w.pool.reset("b")


async def test_a_refused_model_with_other_files_is_tried_again() -> None:
    """A rescan that finds other files lifts the refusal; one that finds the same does not."""
    async with world({"a": 30}) as w:
        w.pool.refuse("a", BROKEN)
        w.pool.rescan()
        with pytest.raises(LoadFailed):
            await w.answer("a")

        w.catalog.index["a"] = dataclasses.replace(w.catalog.index["a"], signature=OTHER_FILES)
        w.pool.rescan()
        assert await w.run(w.answer("a"))


async def test_a_loaded_model_is_not_refused() -> None:
    """What has loaded in the meantime stays."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.pool.refuse("a", BROKEN)
        assert await w.run(w.answer("a"))


async def test_a_lowered_limit_aborts_a_load_that_no_longer_fits() -> None:
    """Its bytes count until the device has ended it; then a smaller model gets them, and its own request an error."""
    async with world({"big": 80, "small": 10}) as w:
        w.backend.load_s, w.backend.abort_s = 60, 2
        big = w.send("big")
        await w.advance(5)
        small = w.send("small")
        w.change({"pool": {"memory": 30 * MB}})
        await w.advance(1)
        assert w.state("big") == "loading"
        assert w.pool.status().memory.reserved_bytes > 80 * MB
        assert w.pool.status().queue[0].reason.startswith("the load of big is being stopped")
        assert w.state("small") == "queued"

        await w.advance(1.5)
        assert isinstance(big.error, DoesNotFit)
        assert w.kinds("big") == ["loading", "load_aborted"]
        assert w.state("small") == "loading"
        await w.advance(61)
        assert small.text


async def test_a_lowered_limit_aborts_the_youngest_loads_and_no_more_than_needed() -> None:
    """What fits beside the least of the others goes on; an aborted one that still fits alone is loaded later."""
    async with world({"a": 30, "b": 30, "c": 30}) as w:
        clients = [w.send(model_id) for model_id in ("a", "b", "c")]
        await w.advance(0.5)
        assert [w.state(model_id) for model_id in "abc"] == ["loading", "loading", "loading"]
        w.change({"pool": {"memory": 40 * MB}})
        await w.settle()
        assert [w.state(model_id) for model_id in "abc"] == ["loading", "queued", "queued"]

        await w.advance(60)
        assert all(client.text for client in clients)
        assert w.backend.calls.count("load a") == 1


async def test_a_load_that_the_lowered_limit_holds_goes_on() -> None:
    """Being over the limit for other models aborts no load that fits when idle ones have gone."""
    async with world({"a": 40, "b": 40}) as w:
        await w.load("a")
        client = w.send("b")
        await w.advance(0.5)
        w.change({"pool": {"memory": 60 * MB}})
        await w.advance(2)
        assert client.text
        assert w.backend.cancelled_loads == 0


async def test_unload_aborts_a_load() -> None:
    """`model unload` returns when the device has ended the load; who waited for it is told, and no backoff follows."""
    async with world({"a": 30}, {"pool": {"preload": ["a"]}}) as w:
        w.backend.load_s, w.backend.abort_s = 60, 2
        await w.advance(5)
        client = w.send("a")
        await w.settle()
        assert await w.run(w.pool.unload("a"), seconds=3)
        assert isinstance(client.error, ModelUnloaded)
        assert w.kinds("a") == ["loading", "load_aborted"]
        await w.advance(60)
        assert w.state("a") == "unloaded"

        w.backend.load_s = 1
        await w.load("a")
        assert w.state("a") == "ready"


async def test_who_comes_while_a_load_is_aborted_gets_a_new_one() -> None:
    """The model is loaded again when the device has ended the first load."""
    async with world({"a": 30}) as w:
        w.backend.abort_s = 2
        w.task(w.pool.load("a"))
        await w.advance(0.5)
        unload = w.task(w.pool.unload("a"))
        await w.settle()
        client = w.send("a")
        await w.advance(4)
        assert unload.done()
        assert client.text
        assert w.kinds("a")[:4] == ["loading", "load_aborted", "loading", "loaded"]


async def test_an_unload_of_a_base_aborts_the_load_of_an_adapter_on_it() -> None:
    """The base goes when the load on it has ended."""
    async with world({"a": 30, "a+x": 2}) as w:
        await w.load("a")
        w.backend.load_s, w.backend.abort_s = 60, 2
        w.send("a+x")
        await w.advance(1)
        assert w.state("a+x") == "loading"
        await w.run(w.pool.unload("a"), seconds=4)
        assert w.backend.calls[-3:] == ["load a+x", "abort a+x", "unload a"]


async def test_a_load_that_is_complete_when_it_is_to_be_aborted_is_unloaded() -> None:
    """The engine is not lost: the model is ready for a moment, and goes."""
    async with world({"a": 30}) as w:
        w.task(w.pool.load("a"))
        await w.advance(0.99)
        resident = w.pool._state.residents["a"]
        w.clock.run_next()
        for _ in range(TURNS):
            if resident.load.task is None or resident.load.task.done():
                break
            await asyncio.sleep(0)
        assert resident.state is ModelState.LOADING
        await w.run(w.pool.unload("a"))
        assert w.backend.engines == []
        assert w.kinds("a") == ["loading", "loaded", "evicting", "unloaded"]
        assert w.state("a") == "unloaded"
