"""Leases: who gets one when, and that none is ever lost."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from mlxd.engine.base import Finished, GenerationRequest, PreparedPrompt, TextPrompt, TokenPrompt
from mlxd.pool.lease import Lease
from mlxd.protocol.errors import (
    ContextLengthExceeded,
    GenerationFailed,
    LoadFailed,
    ModelNotFound,
    ModelUnloaded,
    RequestCancelled,
)
from tests.support.fake_row import answer_text
from tests.support.pool_world import MB, OTHER_FILES, World, entry, facts, world

REQUEST = GenerationRequest(TextPrompt("hello"), max_tokens=5)


async def hold(within: World, model_id: str, entered: asyncio.Event, leave: asyncio.Event) -> None:
    """Take a lease and keep it without generating."""
    async with within.pool.lease(model_id, request_id="holder"):
        entered.set()
        await leave.wait()


async def read(lease: Lease, request: GenerationRequest, prompt: PreparedPrompt) -> list[str]:
    """Generate and return the kinds of the events."""
    return [type(event).__name__ async for event in lease.generate(request, prompt)]


async def test_a_request_loads_its_model_and_is_answered() -> None:
    """An unloaded model is loaded on demand; its answer comes whole."""
    async with world({"a": 30}) as w:
        assert await w.run(w.answer("a", tokens=20)) == answer_text("hello", 0, 20)
        assert w.kinds("a") == ["loading", "loaded"]


async def test_events_come_in_order() -> None:
    """A reader sees prefilling, deltas, and one finish, and nothing of grants and pauses."""
    async with world({"a": 30}) as w:
        await w.load("a")
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(REQUEST)
            kinds = await w.run(read(lease, REQUEST, prompt))

        assert kinds == ["Prefilling", *["Delta"] * 5, "Finished"]


async def test_a_lease_tells_what_it_is_of() -> None:
    """The model, the request and the measured facts are known to the handler."""
    async with world({"a": 30}) as w:
        await w.load("a")
        async with w.pool.lease("a", request_id="r1") as lease:
            assert (lease.model_id, lease.request_id, lease.facts.context_length) == ("a", "r1", 16384)


async def test_an_unknown_model_is_named_with_the_nearest() -> None:
    """A name that the catalog does not have fails at once and begins nothing."""
    async with world({"qwen": 30}) as w:
        with pytest.raises(ModelNotFound, match="qwen"):
            await w.answer("qwem")
        assert w.events == []


async def test_a_model_that_cannot_be_served_says_why() -> None:
    """A broken folder is 404 with its problem."""
    async with world({"a": 30}) as w:
        w.catalog.index["broken"] = entry("broken", facts(1), problem="weights are missing: model-2.safetensors")

        with pytest.raises(ModelNotFound, match=r"model-2\.safetensors"):
            await w.answer("broken")


async def test_a_ready_model_is_leased_without_a_turn_of_the_loop() -> None:
    """A request for a ready model does not wait at all."""
    async with world({"a": 30}) as w:
        await w.load("a")
        entering = w.pool.lease("a", request_id="r").__aenter__()

        with pytest.raises(StopIteration):
            entering.send(None)


async def test_many_requests_make_one_load() -> None:
    """P7: requests for one unloaded model join its load."""
    async with world({"a": 30}) as w:
        clients = [w.send("a", seed=seed) for seed in range(20)]
        await w.advance(5)

        assert w.backend.calls == ["load a"]
        assert all(client.text for client in clients)


async def test_a_failed_load_gives_all_waiters_its_cause() -> None:
    """P7: nobody hangs and nobody gets a different error."""
    async with world({"a": 30}) as w:
        w.backend.fail_load("a", LoadFailed("bad magic in model.safetensors"))
        clients = [w.send("a", seed=seed) for seed in range(5)]
        await w.advance(2)

        assert [str(client.error) for client in clients] == ["bad magic in model.safetensors"] * 5
        assert len({id(client.error) for client in clients}) == 5


async def test_a_waiter_that_goes_leaves_the_load_alone() -> None:
    """P11: a started load completes, for others or for nobody."""
    async with world({"a": 30}) as w:
        first, second = w.send("a"), w.send("a", seed=1)
        await w.advance(0.5)
        first.task.cancel()
        await w.advance(2)
        assert second.text

        third = w.send("a", seed=2)
        third.task.cancel()
        await w.advance(1)
        assert w.state("a") == "ready"
        assert w.backend.calls == ["load a"]


async def test_the_only_waiter_goes_and_the_load_completes() -> None:
    """P11: a load without any waiter left ends in a ready model."""
    async with world({"a": 30}) as w:
        client = w.send("a")
        await w.advance(0.5)
        client.task.cancel()
        await w.advance(2)

        assert w.state("a") == "ready"


async def test_a_waiter_cancelled_after_its_grant_gives_the_lease_back() -> None:
    """The grant and the cancellation in one turn of the loop leak nothing."""
    async with world({"a": 30}) as w:
        client = w.send("a")
        await w.advance(0.9)
        w.backend.hold_loads(hold=True)
        await w.advance(0.2)
        w.backend.hold_loads(hold=False)
        resident = w.pool._state.residents["a"]
        for _ in range(20):  # until just after the grant
            if resident.held:
                break
            await asyncio.sleep(0)
        assert resident.held
        client.task.cancel()
        await w.settle()

        model = w.model("a")
        assert model is not None
        assert (model.state, model.leases) == ("ready", 0)
        assert client.task.cancelled()


async def test_a_dropped_client_ends_its_sequence_within_a_step() -> None:
    """Cancelling the handler frees the row at the next pass of the device."""
    async with world({"a": 30}) as w:
        client = w.send("a", tokens=5000)
        await w.advance(2)
        assert w.backend.running == 1

        client.task.cancel()
        await w.advance(w.backend.step_s)

        assert w.backend.running == 0
        assert w.pool.status().models[0].leases == 0


async def test_a_model_stays_busy_until_the_device_confirms() -> None:
    """Between the client's drop and the device's word the model is not idle, and its KV stays reserved."""
    async with world({"a": 30}) as w:
        client = w.send("a", tokens=5000, prompt="x" * 3000)
        await w.advance(2)
        reserved = w.pool.status().memory.reserved_bytes
        client.task.cancel()
        await w.settle()

        model = w.model("a")
        assert model is not None
        assert (model.leases, model.expires_in_s) == (1, None)
        assert w.pool.status().memory.reserved_bytes == reserved


async def test_two_hundred_drops_leak_nothing() -> None:
    """Clients that go at every moment of their request leave no lease, no row and no bytes."""
    async with world({"a": 30}, {"queue": {"size": 1000, "per_model": 1000}, "engine": {"prompt_cache": "0B"}}) as w:
        await w.load("a")
        idle = w.backend.active_bytes
        for number in range(200):
            client = w.send("a", tokens=400, seed=number)
            for _ in range(number % 7):
                await asyncio.sleep(0)
            await w.advance(0.01 * (number % 5))
            client.task.cancel()
        await w.advance(1)

        model = w.model("a")
        assert model is not None
        assert (model.leases, model.running, model.waiting) == (0, 0, 0)
        assert (w.backend.running, w.backend.active_bytes) == (0, idle)
        assert w.pool.queue_length == 0


async def test_leaving_the_lease_ends_what_still_runs() -> None:
    """A generator that is abandoned in the middle does not keep its row."""
    async with world({"a": 30}) as w:
        await w.load("a")
        request = GenerationRequest(TextPrompt("hello"), max_tokens=5000)
        async with w.pool.lease("a", request_id="r") as lease:
            events = lease.generate(request, await lease.prepare(request))
            await w.run(anext(events))
        await w.advance(0.1)

        assert w.backend.running == 0
        with pytest.raises(RequestCancelled):
            await w.run(anext(events))


async def test_several_sequences_under_one_lease() -> None:
    """A list of prompts runs at once, and each gets its own answer."""
    async with world({"a": 30}) as w:
        await w.load("a")
        async with w.pool.lease("a", request_id="r") as lease:
            prompts = [await lease.prepare(GenerationRequest(TokenPrompt((n,)), max_tokens=4)) for n in (1, 2, 3)]
            readers = [w.task(read(lease, REQUEST, prompt)) for prompt in prompts]
            await w.settle()
            model = w.model("a")
            assert model is not None
            assert (model.running, model.leases) == (3, 1)
            await w.advance(1)

        assert [reader.result()[-1] for reader in readers] == ["Finished"] * 3


async def test_an_error_of_the_engine_reaches_its_reader() -> None:
    """`Failed` is raised as its error, and the row's reservation is gone."""
    async with world({"a": 30}) as w:
        client = w.send("a", tokens=5000)
        await w.advance(2)
        w.backend.fail_sequences("a", GenerationFailed("NaN in the logits"))
        await w.advance(0.1)

        assert isinstance(client.error, GenerationFailed)
        assert w.pool.status().models[0].leases == 0


async def test_an_error_of_prepare_leaves_nothing_behind() -> None:
    """A prompt that is too long fails before anything was submitted."""
    async with world({"a": 30}) as w:
        await w.load("a")
        with pytest.raises(ContextLengthExceeded, match="16384"):
            await w.run(w.answer("a", prompt="x" * 20_000))

        assert w.pool.status().models[0].leases == 0


async def test_a_lease_that_was_given_back_is_of_no_use() -> None:
    """Using a lease after its block is a mistake of the caller, and says so."""
    async with world({"a": 30}) as w:
        await w.load("a")
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(REQUEST)
        with pytest.raises(RuntimeError, match="given back"):
            await lease.prepare(REQUEST)
        with pytest.raises(RuntimeError, match="given back"):
            await anext(lease.generate(REQUEST, prompt))


async def test_a_held_lease_keeps_its_model() -> None:
    """P2: a model whose lease does not generate at the moment is no victim."""
    async with world({"a": 60, "b": 60}) as w:
        entered, leave = asyncio.Event(), asyncio.Event()
        w.task(hold(w, "a", entered, leave))
        await w.advance(2)
        assert entered.is_set()
        client = w.send("b")
        await w.advance(20)
        assert (w.state("a"), w.state("b")) == ("ready", "queued")

        leave.set()
        await w.advance(3)
        assert client.text


async def test_a_draining_model_grants_no_lease() -> None:
    """P3: a request that comes during the drain waits for the reload and is answered by it."""
    async with world({"a": 30}) as w:
        first = w.send("a", tokens=300)
        await w.advance(1.5)
        unload = w.task(w.pool.unload("a"))
        await w.advance(0.5)
        second = w.send("a", seed=1)
        await w.advance(0.1)
        assert w.state("a") == "draining"
        assert not second.done

        await w.advance(10)
        assert first.text == answer_text("hello", 0, 300)
        assert unload.result() is True
        assert second.text
        assert w.kinds("a") == ["loading", "loaded", "draining", "evicting", "unloaded", "loading", "loaded"]


async def test_a_lease_that_has_to_wait_lets_a_draining_model_go() -> None:
    """A lease taken before the drain cannot start for lack of KV: the model goes without it, and comes back for it."""
    async with world({"a": 30, "b": 60}) as w:
        await w.load("a")
        request = GenerationRequest(TextPrompt("x" * 5000), max_tokens=5)
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(request)
            busy = w.send("b", tokens=1000)
            await w.advance(2)
            w.change({"pool": {"max_models": 1}})
            assert w.state("a") == "draining"
            reader = w.task(read(lease, request, prompt))
            await w.settle()
            assert w.state("a") == "unloading"

            await w.advance(20)
            assert len(busy.text) == 1000
            assert reader.result()[-1] == "Finished"


async def test_no_room_is_made_on_a_draining_model() -> None:
    """Nobody is evicted for a request that has to wait for the reload anyway."""
    async with world({"a": 30, "b": 30}, {"pool": {"memory": 70 * MB}}) as w:
        await w.load("a", "b")
        request = GenerationRequest(TextPrompt("x" * 6000), max_tokens=5)
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(request)
            w.task(w.pool.unload("a"))
            await w.settle()
            reader = w.task(read(lease, request, prompt))
            await w.settle()
            assert (w.state("a"), w.state("b")) == ("unloading", "ready")

            await w.advance(3)
            assert reader.result()[-1] == "Finished"


async def test_a_lease_taken_before_a_drain_may_start_during_it() -> None:
    """Where there is memory, a request that was being prepared is answered by the draining model."""
    async with world({"a": 30}) as w:
        await w.load("a")
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(REQUEST)
            unload = w.task(w.pool.unload("a"))
            await w.settle()
            assert w.state("a") == "draining"
            kinds = await w.run(read(lease, REQUEST, prompt))
        await w.advance(1)

        assert kinds[-1] == "Finished"
        assert unload.result() is True
        assert w.backend.calls == ["load a", "unload a"]


async def test_a_ready_model_does_not_wait_for_another_s_load() -> None:
    """P5: requests for a loaded model are answered while another one loads or waits for room."""
    async with world({"a": 30, "b": 40, "c": 60}) as w:
        stream = w.send("a", tokens=3000)
        await w.advance(2)
        loading, blocked = w.send("b"), w.send("c", tokens=5)
        await w.advance(0.5)
        assert (w.state("b"), w.state("c")) == ("loading", "queued")

        quick = w.send("a", seed=1, tokens=5)
        await w.advance(0.2)

        assert quick.text
        assert not loading.done
        assert not blocked.done
        assert not stream.done


async def test_a_lease_outlives_a_reload_of_its_model() -> None:
    """What waits for memory lets its model go, keeps its prompt, and is answered after the reload; so is `prepare`."""
    async with world({"a": 30, "b": 60}) as w:
        busy = w.send("b", tokens=1000)
        await w.load("a")
        request = GenerationRequest(TextPrompt("x" * 5000), max_tokens=5)
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(request)
            reader = w.task(read(lease, request, prompt))
            await w.settle()
            w.change({"pool": {"memory": 70 * MB}})
            await w.advance(1)
            assert w.state("a") == "queued"
            late = w.task(lease.prepare(REQUEST))
            await w.settle()
            assert not late.done()

            w.change({"pool": {"memory": 100 * MB}})
            await w.advance(1.5)
            assert late.result().tokens == tuple(map(ord, "hello"))
            assert not reader.done()
            await w.advance(20)

            assert busy.text == answer_text("hello", 0, 1000)
            assert reader.result()[-1] == "Finished"


async def reload_beneath(w: World, asked: str = "a", **changes: Any) -> asyncio.Task[list[str]]:
    """Have `a` reloaded with an entry changed like that beneath a request that waits for *asked*; return its reader."""
    w.send("b", tokens=1000)
    await w.load(asked)
    request = GenerationRequest(TextPrompt("x" * 5000), max_tokens=5)
    async with w.pool.lease(asked, request_id="r") as lease:
        prompt = await lease.prepare(request)
        reader = w.task(read(lease, request, prompt))
        await w.settle()
        w.change({"pool": {"memory": 70 * MB}})
        await w.advance(1)
        assert w.state(asked) == "queued"
        w.catalog.index["a"] = dataclasses.replace(w.catalog.index["a"], **changes)
        w.pool.rescan()
        w.change({"pool": {"memory": 100 * MB}})
        await w.advance(20)
    return reader


async def test_a_prepared_prompt_holds_its_model_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a second prompt is made ready beside a sequence that only waits, a drain ends at once and not some time."""
    async with world({"a": 30, "b": 60}) as w:
        w.send("b", tokens=9000)
        await w.load("a")
        long = GenerationRequest(TextPrompt("x" * 5000), max_tokens=5)
        async with w.pool.lease("a", request_id="r") as lease:
            first = w.task(read(lease, long, await lease.prepare(long)))
            await w.settle()
            engine = w.backend.engines[-1]
            is_prepared = asyncio.Event()
            prepare = engine.prepare

            async def prepare_slowly(request: GenerationRequest) -> PreparedPrompt:
                await is_prepared.wait()
                return await prepare(request)

            monkeypatch.setattr(engine, "prepare", prepare_slowly)
            second = w.task(lease.prepare(REQUEST))
            await w.settle()
            w.change({"pool": {"memory": 70 * MB}})
            await w.settle()
            assert w.state("a") == "draining"

            is_prepared.set()
            await w.settle()
            assert w.state("a") == "unloading"
            assert second.result().tokens == tuple(map(ord, "hello"))
            assert not first.done()


async def test_a_prompt_does_not_outlive_its_models_files() -> None:
    """A reload from other files beneath a request that waits ends it: its tokens may mean other words."""
    async with world({"a": 30, "b": 60}) as w:
        reader = await reload_beneath(w, signature=OTHER_FILES)
        with pytest.raises(ModelUnloaded, match="loaded again from other files"):
            reader.result()
        assert w.state("a") == "ready"


async def test_a_prompt_for_an_adapter_does_not_outlive_the_files_of_its_base() -> None:
    """An adapter has the tokenizer of its base: other files of that end the request as well."""
    async with world({"a": 28, "a+x": 2, "b": 60}, {"pool": {"memory": 102 * MB}}) as w:
        reader = await reload_beneath(w, "a+x", signature=OTHER_FILES)
        with pytest.raises(ModelUnloaded, match="loaded again from other files"):
            reader.result()
        assert w.state("a+x") == "ready"


async def test_a_prompt_outlives_a_new_estimate() -> None:
    """A reload of the same files, of which only the estimate has changed, lets a request that waited go on."""
    async with world({"a": 30, "b": 60}) as w:
        reader = await reload_beneath(w, weights_bytes=31 * MB)
        assert reader.result()[-1] == "Finished"


async def test_finished_tells_the_usage() -> None:
    """The last event carries the tokens that were really made."""
    async with world({"a": 30}) as w:
        await w.load("a")
        async with w.pool.lease("a", request_id="r") as lease:
            prompt = await lease.prepare(REQUEST)

            async def last() -> object:
                return [event async for event in lease.generate(REQUEST, prompt)][-1]

            finished = await w.run(last())

        assert isinstance(finished, Finished)
        assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (5, 5)
