"""The end of the daemon, and what the pool says of itself."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict

import pytest

from mlxd.clock import LoopClock
from mlxd.engine.base import GenerationRequest, TextPrompt
from mlxd.pool.lease import Lease
from mlxd.protocol.errors import Draining, RequestCancelled
from tests.support.fake_row import answer_text
from tests.support.pool_world import MB, world


async def test_draining_ends_whole_what_runs_and_refuses_the_rest() -> None:
    """Running requests end whole; queued ones and new ones get 503 with a time to come back."""
    async with world({"a": 60, "b": 60}) as w:
        running = w.send("a", tokens=500)
        await w.advance(2)
        queued = w.send("b")
        await w.settle()
        ended = w.task(w.pool.drain(45))
        await w.settle()
        late = w.send("a", seed=1)
        await w.settle()
        assert isinstance(queued.error, Draining)
        assert isinstance(late.error, Draining)
        assert late.error.retry_after_s is not None
        assert not w.pool.ready
        assert w.pool.status().draining
        assert not ended.done()

        await w.advance(10)
        assert ended.result() == 0
        assert running.text == answer_text("hello", 0, 500)


async def test_draining_cancels_what_takes_too_long() -> None:
    """After the timeout the rest ends with an error event, and the number is returned."""
    async with world({"a": 60}) as w:
        running = [w.send("a", tokens=15_000, seed=seed) for seed in range(3)]
        await w.advance(2)

        assert await w.run(w.pool.drain(5), seconds=6) == 3
        assert all(isinstance(client.error, RequestCancelled) for client in running)
        assert w.backend.running == 0


async def test_draining_refuses_what_waits_for_a_slot() -> None:
    """A request that has a lease but no slot has not started: it is refused too."""
    async with world({"a": 60}, {"engine": {"max_sequences": 1}}) as w:
        first = w.send("a", tokens=300)
        await w.advance(1.5)
        second = w.send("a", seed=1)
        await w.settle()
        assert await w.run(w.pool.drain(45)) == 0

        assert isinstance(second.error, Draining)
        assert len(first.text) == 300


async def test_draining_lets_the_parts_of_a_started_request_end() -> None:
    """A list of prompts of which one runs is answered whole, though the other still waits for the slot."""
    async with world({"a": 60}, {"engine": {"max_sequences": 1}}) as w:
        await w.load("a")
        request = GenerationRequest(TextPrompt("hello"), max_tokens=200)

        async def read(lease: Lease) -> str:
            prompt = await lease.prepare(request)
            return [type(event).__name__ async for event in lease.generate(request, prompt)][-1]

        async def both() -> list[str]:
            async with w.pool.lease("a", request_id="r") as lease:
                return list(await asyncio.gather(read(lease), read(lease)))

        parts = w.task(both())
        await w.advance(0.5)

        assert await w.run(w.pool.drain(45)) == 0
        assert parts.result() == ["Finished", "Finished"]


async def test_draining_an_idle_pool_returns_at_once() -> None:
    """With nothing to wait for, no time passes."""
    async with world({"a": 30}) as w:
        await w.load("a")

        assert await w.run(w.pool.drain(45), seconds=0) == 0


async def test_draining_lets_paused_streams_end() -> None:
    """A stream that is paused when the shutdown begins goes on and ends whole."""
    async with world({"a": 60}, {"pool": {"memory": 68 * MB}}) as w:
        streams = [w.send("a", prompt="x" * 500, tokens=3000, seed=seed) for seed in range(2)]
        await w.advance(23)
        assert w.pool.status().models[0].paused == 1

        assert await w.run(w.pool.drain(200)) == 0
        assert [len(stream.text) for stream in streams] == [3000, 3000]


async def test_closing_leaves_no_task_and_no_timer() -> None:
    """A load that runs when the pool closes is let go, and what the device says afterwards begins nothing."""
    async with world({"a": 30, "b": 30}) as w:
        stream = w.send("a", tokens=10_000)
        await w.advance(2)
        waiting = w.send("b")
        await w.advance(0.5)
        await w.pool.close()
        stream.task.cancel()
        waiting.task.cancel()
        w.backend.fail_sequences("a", RequestCancelled("the device ends"))
        await w.advance(10)

        assert w.backend.calls == ["load a", "load b", "abort b"]
        assert w.clock.next_s is None


async def test_status_is_plain_data() -> None:
    """Every state of the pool can be written as JSON without help, and bytes add up."""
    document = {"pool": {"preload": ["a"], "keep_alive": "never"}, "models": {"c": {"pin": True}}}
    async with world({"a": 20, "b": 90, "c": 20}, document) as w:
        w.send("b")
        w.send("c", tokens=3000)
        for _ in range(20):
            await w.advance(0.3)
            status = w.pool.status()
            assert json.loads(json.dumps(asdict(status)))["memory"]["limit_bytes"] == 100 * MB
            memory = status.memory
            parts = (
                memory.weights_bytes,
                memory.kv_bytes,
                memory.prompt_cache_bytes,
                memory.loading_bytes,
                memory.margin_bytes,
            )
            assert memory.reserved_bytes == sum(parts)
            assert memory.free_bytes == memory.limit_bytes - memory.reserved_bytes

        assert w.pool.status().memory.pinned_bytes > 20 * MB
        model = w.model("c")
        assert model is not None
        assert (model.pinned, model.running, model.leases) == (True, 1, 1)


async def test_a_pinned_model_that_is_not_loaded_is_listed() -> None:
    """Pins and the preload list are shown although nothing of them is in memory."""
    async with world({"a": 20, "b": 20}, {"models": {"b": {"pin": True}}}) as w:
        assert [(model.id, model.state, model.estimated) for model in w.pool.status().models] == [
            ("b", "unloaded", True)
        ]


async def test_going_over_the_limit_and_back_is_reported_once() -> None:
    """The event stream tells when the pool goes over its limit and when it is within it again."""
    async with world({"a": 60}) as w:
        w.send("a", tokens=500)
        await w.advance(2)
        w.change({"pool": {"memory": 30 * MB}})
        await w.advance(20)

        events = [event for event in w.events if event.kind.startswith("pool.")]
        assert [event.kind for event in events] == ["pool.over_limit", "pool.within_limit"]
        assert "draining a (1 request" in events[0].message


async def test_every_event_but_progress_is_one_log_line() -> None:
    """Messages are single lines and never empty, but for what is too frequent."""
    async with world({"a": 60, "b": 60}) as w:
        await w.run(w.answer("a"))
        await w.run(w.answer("b"))

        for event in w.events:
            assert (event.message == "") == (event.kind in {"model.load_progress", "queue.joined", "queue.left"})
            assert "\n" not in event.message


async def test_the_real_clock_calls_later() -> None:
    """The clock of the loop has its time and runs what was put off, unless it was taken back."""
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop)
    called = asyncio.Event()
    clock.call_later(0, pytest.fail).cancel()
    clock.call_later(0, called.set)
    await called.wait()

    assert clock.now() <= loop.time()
