"""Who gets memory and slots first, and who gives way for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.protocol.errors import DoesNotFit
from tests.support.pool_world import MB, Client, World, world

SIZES_MB = {"a": 30, "b": 40, "c": 5}


@asynccontextmanager
async def quick_world(document: dict[str, Any]) -> AsyncIterator[World]:
    """Run a world whose rows make 100 tokens a second, twenty at a time."""
    async with world(SIZES_MB, {"queue": {"timeout": "10m"}, **document}) as w:
        w.backend.step_s, w.backend.pass_tokens = 0.2, 20
        yield w


def send_long(w: World, model_id: str, seed: int) -> Client:
    """Send a request that takes 10.5 MB of KV at its end, and 30 s."""
    return w.send(model_id, prompt="x" * 7_500, tokens=3_000, seed=seed)


@pytest.mark.parametrize("kept", [{"pool": {"preload": ["a"]}}, {"models": {"a": {"pin": True}}}, {}])
async def test_a_stream_of_requests_does_not_keep_a_model_out_that_fits_beside(kept: dict[str, Any]) -> None:
    """After the patience a load gets the memory that sequences take; nothing is unloaded for it, and all end whole."""
    async with quick_world(kept) as w:
        stream = []
        for number in range(30):
            stream.append(send_long(w, "a", number))
            if number == 10:
                client = w.send("b")
            await w.advance(4)

        assert client.done
        assert client.error is None
        assert "evicting" not in w.kinds("a")
        await w.advance(600)
        assert all(request.done and request.error is None for request in stream)


async def test_only_younger_sequences_pause_for_a_load() -> None:
    """What is older than the load runs to its end; of what came later just enough pauses, and ends whole afterwards."""
    async with quick_world({"pool": {"preload": ["a"], "memory": 98 * MB, "evict_patience": "10s"}}) as w:
        await w.advance(2)
        older = [send_long(w, "a", number) for number in range(3)]
        await w.advance(5)
        client = w.send("b")
        younger = [send_long(w, "a", number) for number in range(3, 6)]
        await w.advance(20)
        assert "paused" not in " ".join(w.kinds("a"))

        await w.run(_end(older))
        await w.advance(2)
        assert w.kinds("a").count("sequence.paused") == 1
        assert client.done

        await w.run(_end(younger))


async def test_what_an_overdue_load_is_promised_goes_to_no_younger_request() -> None:
    """While older sequences keep a load waiting, a younger request gets only memory that its model holds anyway."""
    document = {"pool": {"preload": ["a", "b"], "memory": 90 * MB, "evict_patience": "0s"}}
    async with quick_world(document) as w:
        await w.advance(5)
        older = send_long(w, "b", 0)
        await w.advance(1)
        load = w.send("c")
        beside = w.send("b", prompt="hi", tokens=5)
        alone = w.send("a", prompt="hi", tokens=5)
        await w.advance(1)

        assert (load.done, beside.done, alone.done) == (False, False, True)
        await w.run(_end([older]))
        await w.advance(2)
        assert (load.done, beside.done) == (True, True)


async def test_a_request_with_many_answers_shares_the_slots_with_a_later_one() -> None:
    """The next free slot is for the later request, which has none yet."""
    async with quick_world({"engine": {"max_sequences": 2}}) as w:
        await w.load("a")
        many = w.task(w.answer("a", n=20, tokens=100))
        await w.settle()
        later = w.send("a", tokens=100)
        await w.advance(2.5)  # the first two answers, and then its own

        assert later.done
        assert not many.done()
        await w.run(many)


async def test_an_older_sequence_that_lacks_memory_keeps_no_slot_empty() -> None:
    """A younger request that fits in what its model holds anyway takes the slot meanwhile."""
    document = {"pool": {"preload": ["a", "b"], "memory": 80 * MB}, "engine": {"max_sequences": 2}}
    async with quick_world(document) as w:
        await w.advance(5)
        runs = w.send("b", prompt="hi", tokens=300)
        await w.advance(1)
        big = w.task(w.answer("b", n=2, prompt="x" * 3_500, tokens=1_500))
        await w.settle()
        small = w.send("b", prompt="hi", tokens=5)
        await w.advance(1)

        assert small.done
        assert not runs.done
        assert not big.done()


async def test_a_sequence_starts_when_a_smaller_prompt_cache_leaves_room_for_it() -> None:
    """Behind an older one that is blocked it waits while its model's cache fills what the model holds anyway."""
    async with quick_world({"pool": {"preload": ["a", "b"], "memory": 81 * MB}}) as w:
        await w.run(w.answer("a", prompt="x" * 1200))
        w.send("b", prompt="hi", tokens=900)
        await w.advance(1)
        w.send("b", prompt="x" * 3500, tokens=1500)
        client = w.send("a", prompt="hi", tokens=5)
        await w.advance(1)
        assert not client.done

        w.change({"engine": {"prompt_cache": 0}})
        await w.advance(1)

        assert client.done


@settings(max_examples=25)
@given(
    slots=st.integers(1, 4),
    requests=st.lists(st.tuples(st.integers(1, 6), st.sampled_from((20, 60, 200)), st.integers(0, 3)), max_size=8),
)
def test_a_slot_goes_to_the_request_that_has_the_fewest(slots: int, requests: list[tuple[int, int, int]]) -> None:
    """In every round the free slots go, one by one, to the oldest of the requests that have the fewest."""
    asyncio.run(_share(slots, requests))


async def _share(slots: int, requests: list[tuple[int, int, int]]) -> None:
    async with quick_world({"engine": {"max_sequences": slots}}) as w:
        await w.load("c")
        resident = w.pool._state.residents["c"]
        allocator = w.pool._scheduler._allocator
        admit = allocator.admit
        rounds: list[tuple[set[int], set[int]]] = []

        def watched_admit() -> None:
            before = set(resident.active)
            taken = [sequence.ticket for sequence in resident.active.values()]
            waiting = list(resident.waiting.values())
            expected = set()
            while waiting and len(taken) < slots:
                first = min(waiting, key=lambda sequence: (taken.count(sequence.ticket), sequence.age))
                waiting.remove(first)
                taken.append(first.ticket)
                expected.add(first.number)
            admit()
            rounds.append((expected, set(resident.active) - before))

        allocator.admit = watched_admit  # type: ignore[method-assign]
        tasks = []
        for n, tokens, wait_s in requests:
            tasks.append(w.task(w.answer("c", n=n, tokens=tokens)))
            await w.advance(wait_s / 2)
        for task in tasks:
            await w.run(task)
        assert [expected for expected, _ in rounds] == [started for _, started in rounds]


async def _end(clients: list[Client]) -> None:
    for client in clients:
        await client.task


async def test_what_does_not_fit_names_max_models_only_when_that_is_why() -> None:
    """Adapters do not count against `pool.max_models`, neither one that is to be loaded nor those that stay."""
    sizes = {"a": 10, "a+x": 2, "a+big": 400, "b": 10, "huge": 400}
    kept = {"a": {"pin": True}, "a+x": {"pin": True}}
    async with world(sizes, {"models": kept, "pool": {"max_models": 2}}) as w:
        await w.load("a", "a+x")
        with pytest.raises(DoesNotFit) as adapter:
            await w.load("a+big")
        with pytest.raises(DoesNotFit) as model:
            await w.load("huge")
        assert "max_models" not in adapter.value.message + model.value.message

        w.change({"pool": {"max_models": 1}})
        with pytest.raises(DoesNotFit) as adapter:
            await w.load("a+big")
        assert "max_models" not in adapter.value.message
        with pytest.raises(DoesNotFit, match=r"pool\.max_models is 1"):
            await w.load("b")


@pytest.mark.parametrize(("memory_mb", "tokens"), [(60, 4_000), (60, 12_000), (40, 1_500)])
async def test_a_request_with_many_answers_shares_the_memory_with_a_later_one(memory_mb: int, tokens: int) -> None:
    """It gets what the next answer gives back, also where only one fits at a time; or after the patience, a pause."""
    async with quick_world({"pool": {"memory": memory_mb * MB}, "queue": {"timeout": "2m"}}) as w:
        await w.load("a")
        many = w.task(w.answer("a", n=20, prompt="x" * 4_000, tokens=tokens))
        await w.advance(1)
        later = w.send("a", prompt="hi", tokens=5)
        await w.advance(120)

        assert later.done
        assert later.error is None
        assert not many.done()
        await w.run(many, 60_000)


@pytest.mark.parametrize("document", [{"engine": {"max_sequences": 1}}, {"pool": {"memory": 40 * MB}}])
async def test_a_request_with_many_answers_takes_turns_with_a_stream(document: dict[str, Any]) -> None:
    """Where one sequence fits at a time, neither the further answers nor later requests wait for more than one."""
    async with quick_world(document) as w:
        await w.load("a")
        ended: list[str] = []

        def send(name: str, n: int = 1) -> None:
            client = w.send("a", prompt="x" * 4_000, tokens=500, n=n)
            client.task.add_done_callback(lambda _: end(name))

        def end(name: str) -> None:
            ended.append(name)
            if len(ended) < 5:
                send(f"later {len(ended) + 1}")

        send("many", n=3)
        await w.settle()
        send("later 1")
        await w.advance(600)

        assert ended == ["later 1", "later 2", "many", "later 3", "later 4", "later 5"]
