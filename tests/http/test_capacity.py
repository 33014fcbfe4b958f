"""What a client is told when capacity is short: status, code and headers, through the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlxd.catalog import Catalog
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import LoadFailed, OutOfMemory
from tests.support.clock import FakeClock
from tests.support.control import until
from tests.support.fake_backend import FakeBackend
from tests.support.http_server import Served, serving, settings_of
from tests.support.model_folder import write_model
from tests.support.pool_world import TURNS

Task = asyncio.Task["Answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as far as capacity is concerned."""

    status: int
    code: str | None
    retry_after: str | None
    should_retry: str | None
    message: str


@dataclass(slots=True)
class Short:
    """A served pool whose device and clock are moved by hand."""

    served: Served
    pool: Pool
    backend: FakeBackend
    clock: FakeClock
    sent: int = 0

    async def ask(self, model: str = "a", max_tokens: int = 3, request_id: str = "asked") -> Answer:
        """Send a request and return its answer."""
        body = {"model": model, "prompt": "hello", "max_tokens": max_tokens}
        status, headers, text = await self.served.post("/v1/completions", body, x_request_id=request_id)
        error = json.loads(text).get("error", {})
        return Answer(
            status,
            error.get("code"),
            headers.get("Retry-After"),
            headers.get("x-should-retry"),
            error.get("message", ""),
        )

    async def send(self, model: str = "a", *, waiting: int | None = None, max_tokens: int = 3) -> Task:
        """Begin a request; return when it has come in, and is among the *waiting* ones if that is given."""
        self.sent += 1
        request_id = f"sent-{self.sent}"
        task = asyncio.ensure_future(self.ask(model, max_tokens, request_id))
        requests = self.served.context.requests
        await until(lambda: task.done() or any(request.id == request_id for request in requests.list()))
        if waiting is not None:
            await until(lambda: self.pool.queue_length == waiting)
        return task

    async def end(self, *tasks: Task) -> list[Answer]:
        """Move the clock until these have been answered."""
        async with asyncio.timeout(30):
            while not all(task.done() for task in tasks):
                await self.tick()
        return [task.result() for task in tasks]

    async def tick(self) -> None:
        """Let everything happen that needs no time, then what comes next."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if self.clock.next_s is not None:
            self.clock.run_next()


@asynccontextmanager
async def short(folder: Path, **document: Any) -> AsyncIterator[Short]:
    """Serve the models `a` and `b` under these settings."""
    for name in ("a", "b"):
        write_model(folder / name)
    catalog = Catalog([folder])
    catalog.scan()
    clock = FakeClock()
    backend = FakeBackend(clock)
    settings = settings_of({**document, "pool": {"memory": "16MB", "keep_alive": "never", **document.get("pool", {})}})
    pool = Pool(backend, catalog, settings, clock=clock, usable_bytes=16 * 10**9, on_event=lambda event: None)
    await pool.start()
    try:
        async with serving(pool, catalog=catalog, document=document, clock=clock) as served:
            yield Short(served, pool, backend, clock)
    finally:
        await pool.close()
        await backend.close()


@pytest.mark.parametrize("is_loaded", [False, True], ids=["not loaded", "loaded"])
async def test_queue_full_for_one_model(tmp_path: Path, is_loaded: bool) -> None:
    """429 with a time to come back, whether the requests wait for a load or for a slot of a loaded model."""
    async with short(tmp_path, queue={"per_model": 2}, engine={"max_sequences": 1}) as s:
        first = []
        if is_loaded:
            await s.end(await s.send())
            first.append(await s.send(max_tokens=500))
            await until(lambda: s.backend.running or s.pool.status().models[0].running)
        first += [await s.send(waiting=1), await s.send(waiting=2)]

        refused = await s.ask()
        assert (refused.status, refused.code, refused.retry_after) == (429, "queue_full", "2")
        assert refused.should_retry is None
        assert "queue.per_model is 2" in refused.message
        assert {answer.status for answer in await s.end(*first)} == {200}


async def test_queue_full_over_all_models(tmp_path: Path) -> None:
    """429 as well when the requests of all models together are too many."""
    async with short(tmp_path, queue={"size": 2}) as s:
        tasks = [await s.send("a", waiting=1), await s.send("b", waiting=2)]
        refused = await s.ask("b")
        assert (refused.status, refused.code, refused.retry_after) == (429, "queue_full", "1")
        assert "queue.size is 2" in refused.message
        assert {answer.status for answer in await s.end(*tasks)} == {200}


@pytest.mark.parametrize(("mean_service_s", "retry_after"), [(0.001, "1"), (240.0, "15"), (100_000.0, "60")])
async def test_retry_after_is_never_out_of_bounds(tmp_path: Path, mean_service_s: float, retry_after: str) -> None:
    """Waiting requests · mean service / slots, but from 1 to 60: SDKs take more for none at all, and hammer."""
    async with short(tmp_path, queue={"per_model": 2}) as s:
        s.pool._state.mean_service_s = mean_service_s
        tasks = [await s.send(waiting=1), await s.send(waiting=2)]
        assert (await s.ask()).retry_after == retry_after
        await s.end(*tasks)


async def test_queue_timeout(tmp_path: Path) -> None:
    """503 with a time to come back, and what it waited for."""
    async with short(tmp_path, queue={"timeout": "5s"}, pool={"max_models": 1}) as s:
        busy = await s.send("a", max_tokens=2000)
        await until(lambda: s.backend.calls)
        (answer,) = await s.end(await s.send("b", waiting=2))
        assert (answer.status, answer.code, answer.retry_after, answer.should_retry) == (
            503,
            "queue_timeout",
            "1",
            None,
        )
        assert "1 of 1 models loaded" in answer.message
        assert [whole.status for whole in await s.end(busy)] == [200]


async def test_load_timeout(tmp_path: Path) -> None:
    """503 when the load takes too long; the load ends with it, and the next request begins a new one."""
    async with short(tmp_path, pool={"load_timeout": "2s"}) as s:
        s.backend.hold_loads(hold=True)
        (answer,) = await s.end(await s.send())
        assert (answer.status, answer.code, answer.retry_after, answer.should_retry) == (503, "load_timeout", "1", None)
        assert s.backend.cancelled_loads == 1
        s.backend.hold_loads(hold=False)
        assert [whole.status for whole in await s.end(await s.send())] == [200]


async def test_draining(tmp_path: Path) -> None:
    """503 for what is new and for what waits, while what runs ends whole."""
    async with short(tmp_path, engine={"max_sequences": 1}) as s:
        await s.end(await s.send())
        running = await s.send(max_tokens=500)
        await until(lambda: s.pool.status().models[0].running)
        waiting = await s.send(waiting=1)
        drained = asyncio.ensure_future(s.pool.drain(1000))
        late = await s.send()
        refused = await s.end(waiting, late)
        assert [(answer.status, answer.code, answer.retry_after) for answer in refused] == [(503, "draining", "45")] * 2
        assert [answer.status for answer in await s.end(running)] == [200]
        await drained


async def test_model_unloaded(tmp_path: Path) -> None:
    """503 with a time to come back for requests that waited for a model that is unloaded by command."""
    async with short(tmp_path) as s:
        waiting = await s.send(waiting=1)
        unload = asyncio.ensure_future(s.pool.unload("a"))
        (answer,) = await s.end(waiting)
        assert (answer.status, answer.code, answer.retry_after) == (503, "model_unloaded", "1")
        assert answer.should_retry is None
        while not unload.done():
            await s.tick()


@pytest.mark.parametrize(("failure", "tries"), [(LoadFailed("bad magic"), 1), (OutOfMemory("no memory"), 2)])
async def test_load_failed_and_oom(tmp_path: Path, failure: LoadFailed | OutOfMemory, tries: int) -> None:
    """500 with the cause and `x-should-retry: false` for all that waited, and at once during the backoff."""
    async with short(tmp_path) as s:
        for _ in range(tries):
            s.backend.fail_load("a", failure)
        answers = await s.end(await s.send(waiting=1), await s.send(waiting=2))
        answers.append(await s.ask())
        assert [(answer.status, answer.code, answer.should_retry) for answer in answers] == [
            (500, failure.code, "false")
        ] * 3
        assert all(failure.message in answer.message for answer in answers)
        assert (answers[0].retry_after, answers[2].retry_after) == (None, "5")
        assert s.backend.calls == ["load a"] * tries


async def test_does_not_fit(tmp_path: Path) -> None:
    """507 at once, with both numbers, and `x-should-retry: false`."""
    async with short(tmp_path, pool={"memory": "1MB"}) as s:
        answer = await s.ask()
        assert (answer.status, answer.code, answer.retry_after, answer.should_retry) == (
            507,
            "does_not_fit",
            None,
            "false",
        )
        assert "the memory limit is 1.0 MB" in answer.message


async def test_model_not_found(tmp_path: Path) -> None:
    """404 with the nearest names."""
    async with short(tmp_path) as s:
        answer = await s.ask("aa")
        assert (answer.status, answer.code, answer.should_retry) == (404, "model_not_found", "false")
        assert "'a'" in answer.message or " a" in answer.message
