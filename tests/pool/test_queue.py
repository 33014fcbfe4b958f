"""The queue's bounds and deadlines."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.pool.queue_limit import retry_after_s
from mlxd.protocol.errors import LoadTimeout, QueueFull, QueueTimeout
from tests.support.pool_world import MB, Client, World, world


def refused(*clients: Client) -> list[Client]:
    """Return the clients that the queue refused."""
    return [client for client in clients if isinstance(client.error, QueueFull)]


async def test_the_bound_per_model_counts_requests_for_a_loading_model() -> None:
    """One more than `queue.per_model` is refused with 429; the others are answered."""
    async with world({"a": 30}, {"queue": {"per_model": 3}}) as w:
        clients = [w.send("a", seed=seed) for seed in range(5)]
        await w.settle()
        assert refused(*clients) == clients[3:]
        assert "queue.per_model is 3" in str(clients[3].error)

        await w.advance(5)
        assert all(client.text for client in clients[:3])


async def test_the_bound_counts_requests_for_a_ready_model_too() -> None:
    """Requests beyond the slots of a loaded model wait, and are counted."""
    document = {"queue": {"per_model": 2}, "engine": {"max_sequences": 1}}
    async with world({"a": 30}, document) as w:
        await w.load("a")
        clients = [w.send("a", tokens=50, seed=seed) for seed in range(5)]
        await w.settle()

        assert refused(*clients) == clients[3:]
        assert w.pool.queue_length == 2
        await w.advance(5)
        assert all(client.text for client in clients[:3])


async def test_the_bound_over_all_models() -> None:
    """`queue.size` counts the requests of all models together."""
    async with world({"a": 30, "b": 30}, {"queue": {"size": 3}}) as w:
        clients = [w.send(model_id, seed=seed) for seed in range(2) for model_id in ("a", "b")]
        await w.settle()

        assert refused(*clients) == clients[3:]
        assert "queue.size is 3" in str(clients[3].error)


async def test_a_queue_of_size_0_takes_what_can_start_at_once() -> None:
    """With no queue, a loaded model with a free slot still answers; everything else is refused."""
    document = {"queue": {"size": 0}, "engine": {"max_sequences": 1}}
    async with world({"a": 30}, document) as w:
        unloaded = w.send("a")
        await w.settle()
        assert refused(unloaded)

        await w.load("a")
        first, second = w.send("a", tokens=50), w.send("a", seed=1)
        await w.advance(2)
        assert first.text
        assert refused(second)


async def test_a_command_is_not_counted() -> None:
    """`model load` works with a full queue."""
    async with world({"a": 30}, {"queue": {"size": 0}}) as w:
        await w.load("a")

        assert w.state("a") == "ready"


async def test_raised_bounds_hold_for_the_next_request() -> None:
    """The queue's bounds change at once."""
    async with world({"a": 30}, {"queue": {"per_model": 1}}) as w:
        first, second = w.send("a"), w.send("a", seed=1)
        await w.settle()
        w.change({"queue": {"per_model": 2}})
        third = w.send("a", seed=2)
        await w.settle()

        assert refused(first, second, third) == [second]


@pytest.mark.parametrize(
    ("waiting", "mean_service_s", "expected"), [(0, 10.0, 1.0), (64, 10.0, 20.0), (1000, 30.0, 60.0)]
)
async def test_retry_after_is_the_queue_s_length_in_seconds(
    waiting: int, mean_service_s: float, expected: float
) -> None:
    """Retry-After is waiting requests · mean service / slots, and always between 1 and 60 seconds."""
    async with world({"a": 30}) as w:
        w.pool._state.mean_service_s = mean_service_s

        assert retry_after_s(w.pool._state, waiting) == expected


async def test_the_mean_service_time_follows_the_leases() -> None:
    """Long leases raise what Retry-After is made from."""
    async with world({"a": 30}) as w:
        before = w.pool._state.mean_service_s
        w.send("a", tokens=2000)
        await w.advance(30)

        assert w.pool._state.mean_service_s > before


async def blocked(w: World) -> tuple[Client, Client]:
    """Return a stream on "a" and a request for "b" that has no room beside it."""
    stream = w.send("a", tokens=15_000)
    await w.advance(2)
    return stream, w.send("b")


async def test_a_wait_ends_with_its_reason() -> None:
    """After `queue.timeout` a request that nothing could be evicted for fails, and says what it waited for."""
    document: dict[str, Any] = {"queue": {"timeout": "20s"}}
    async with world({"a": 60, "b": 60}, document) as w:
        _, waiting = await blocked(w)
        await w.advance(19.9)
        assert not waiting.done
        assert w.pool.status().queue[0].reason.startswith("needs 64.5 MB")

        await w.advance(0.2)
        assert isinstance(waiting.error, QueueTimeout)
        assert "a has 1 request" in str(waiting.error)
        assert waiting.error.retry_after_s is not None


async def test_a_shorter_timeout_holds_for_those_that_wait() -> None:
    """A lowered `queue.timeout` applies at once."""
    async with world({"a": 60, "b": 60}) as w:
        _, waiting = await blocked(w)
        await w.advance(10)
        w.change({"queue": {"timeout": "5s"}})
        await w.settle()

        assert isinstance(waiting.error, QueueTimeout)


async def test_a_wait_for_a_slot_ends_too() -> None:
    """A request that gets no slot of a loaded model times out with that reason."""
    document = {"queue": {"timeout": "20s"}, "engine": {"max_sequences": 1}}
    async with world({"a": 30}, document) as w:
        w.send("a", tokens=15_000)
        await w.advance(2)
        waiting = w.send("a", seed=1)
        await w.advance(19)
        assert w.pool.status().queue[0].reason == "all 1 sequences of a are taken"

        await w.advance(2)
        assert isinstance(waiting.error, QueueTimeout)


async def test_a_wait_for_kv_ends_too() -> None:
    """A request that gets no KV memory times out with that reason; the stream beside it goes on."""
    async with world({"a": 60}, {"pool": {"memory": 75 * MB}, "queue": {"timeout": "20s"}}) as w:
        stream = w.send("a", prompt="x" * 6000, tokens=9000)
        await w.advance(2)
        waiting = w.send("a", prompt="y" * 6000)
        await w.advance(19)
        assert "KV of 6010 tokens" in w.pool.status().queue[0].reason

        await w.advance(2)
        assert isinstance(waiting.error, QueueTimeout)
        assert not stream.done


async def test_a_slow_load_has_its_own_deadline() -> None:
    """`pool.load_timeout`, not `queue.timeout`, bounds the wait for a load that runs; the load ends with it."""
    document = {"queue": {"timeout": "5s"}, "pool": {"load_timeout": "60s"}}
    async with world({"a": 30}, document) as w:
        w.backend.load_s = 100
        waiting = w.send("a")
        await w.advance(59)
        assert not waiting.done

        await w.advance(2)
        assert isinstance(waiting.error, LoadTimeout)
        assert w.kinds("a") == ["loading", "load_aborted"]
        assert w.state("a") == "unloaded"


async def test_a_slow_load_goes_on_for_those_who_came_later() -> None:
    """A waiter whose `pool.load_timeout` is over takes the load neither from later ones nor from the preload list."""
    async with world({"a": 30, "b": 30}, {"pool": {"load_timeout": "60s", "preload": ["b"]}}) as w:
        w.backend.load_s = 100
        first = w.send("b")
        await w.advance(90)
        assert isinstance(first.error, LoadTimeout)
        await w.advance(11)
        assert w.kinds("b") == ["loading", "loaded"]

        gone = w.send("a")
        await w.advance(5)
        gone.task.cancel()
        await w.advance(54)
        later = w.send("a")
        await w.advance(43)
        assert later.text
        assert w.kinds("a") == ["loading", "loaded"]


async def test_a_reload_does_not_use_up_the_time_in_the_queue() -> None:
    """A request whose model is loaded again beneath it waits `queue.timeout` for its place after the load."""
    async with world({"a": 30, "b": 60}, {"queue": {"timeout": "5s"}}) as w:
        w.send("b", tokens=15_000)
        await w.load("a")
        waiting = w.send("a", prompt="x" * 5000)
        await w.advance(0.5)
        w.change({"pool": {"memory": 70 * MB}})
        await w.advance(0.5)
        w.backend.load_s = 20
        w.change({"pool": {"memory": 100 * MB}})
        await w.advance(23)
        assert (w.state("a"), waiting.done) == ("ready", False)

        await w.advance(3)
        assert isinstance(waiting.error, QueueTimeout)


async def test_a_late_waiter_gets_the_whole_load_timeout() -> None:
    """The deadline counts from the request's arrival when the load runs already."""
    async with world({"a": 30}, {"pool": {"load_timeout": "60s"}}) as w:
        w.backend.load_s = 100
        w.send("a")
        await w.advance(50)
        late = w.send("a", seed=1)
        await w.advance(49)
        assert not late.done

        await w.advance(5)
        assert late.text


async def test_waits_are_listed_oldest_first() -> None:
    """Status shows every waiting request with its model, its time and its reason."""
    async with world({"a": 60, "b": 60, "c": 70}) as w:
        await blocked(w)
        await w.advance(3)
        w.send("c", seed=7)
        await w.settle()

        queue = w.pool.status().queue
        assert [(wait.model, wait.request_id) for wait in queue] == [("b", "b-hello-0"), ("c", "c-hello-7")]
        assert queue[0].waited_s == pytest.approx(3)
        assert all(wait.reason for wait in queue)


async def test_who_waits_is_told_once_and_who_does_not_is_not() -> None:
    """A request that finds a free slot is no event; one that waits is two, whatever it waits for, however it ends."""
    async with world({"a": 30}, {"engine": {"max_sequences": 1}}) as w:
        for_load = w.send("a", tokens=50)
        await w.advance(1)
        for_slot, gone = w.send("a", seed=1), w.send("a", seed=2)
        await w.settle()
        gone.task.cancel()
        await w.advance(5)
        await w.run(w.answer("a", seed=3))
        assert for_load.text
        assert for_slot.text
        told = [event for event in w.events if event.kind.startswith("queue.")]
        assert sorted(event.kind for event in told) == ["queue.joined"] * 3 + ["queue.left"] * 3
        joined = [event.data["request"] for event in told if event.kind == "queue.joined"]
        left = {event.data["request"]: event.data["started"] for event in told if event.kind == "queue.left"}
        assert len(set(joined)) == 3
        assert [left[request] for request in joined] == [True, True, False]
        assert all(event.model_id == "a" for event in told)
