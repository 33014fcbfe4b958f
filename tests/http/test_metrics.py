"""Every series moves when what it counts happens, as Prometheus would read it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from mlxd.catalog import Catalog
from mlxd.metrics import Metrics
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import LoadFailed
from tests.support.clock import FakeClock
from tests.support.fake_backend import FakeBackend
from tests.support.http_server import Served, serving, settings_of
from tests.support.model_folder import write_model
from tests.support.pool_world import TURNS
from tests.support.scripted_pool import ScriptedPool, end, say
from tests.support.upstream import KEY, upstream

Series = dict[tuple[str, tuple[str, ...]], float]
COMPLETIONS = "/v1/completions"


async def scrape(served: Served, **headers: str) -> Series:
    """Return (name, values of the labels in the order of their names) → value."""
    status, got, body = await served.get("/metrics", **headers)
    assert (status, got["Content-Type"].partition(";")[0]) == (200, "text/plain")
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


@asynccontextmanager
async def metered(folder: Path, **document: Any) -> AsyncIterator[tuple[Served, FakeBackend, FakeClock]]:
    """Serve the models `a` and `b`, one loaded at a time, from a pool that tells what it does."""
    for name in ("a", "b"):
        write_model(folder / name)
    catalog = Catalog([folder])
    catalog.scan()
    clock, metrics = FakeClock(), Metrics()
    backend = FakeBackend(clock)
    document = {"pool": {"memory": "16MB", "keep_alive": "never", "max_models": 1}, **document}
    settings = settings_of(document)
    pool = Pool(backend, catalog, settings, clock=clock, usable_bytes=16 * 10**9, on_event=metrics.take_pool_event)
    await pool.start()
    try:
        async with serving(
            pool, catalog=catalog, document=document, clock=clock, metrics=metrics, home=folder
        ) as served:
            yield served, backend, clock
    finally:
        await pool.close()
        await backend.close()


async def finish(task: asyncio.Future[Any], clock: FakeClock) -> None:
    """Move the clock until *task* is done."""
    async with asyncio.timeout(30):
        while not task.done():
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if clock.next_s is not None and not task.done():
                clock.run_next()


async def ask(served: Served, clock: FakeClock, model: str) -> int:
    """Return the status of a completion, the clock moved until it is there."""
    task = asyncio.ensure_future(served.post(COMPLETIONS, {"model": model, "prompt": "hello", "max_tokens": 3}))
    await finish(task, clock)
    return task.result()[0]


async def test_a_request_moves_what_it_touches(tmp_path: Path) -> None:
    """Requests, durations, first tokens, tokens, the wait for the load, loads, models and memory."""
    async with metered(tmp_path) as (served, _, clock):
        before = await scrape(served)
        assert await ask(served, clock, "a") == 200
        after = await scrape(served)
    assert after["mlxd_requests_total", ("POST", COMPLETIONS, "200")] == 1
    assert after["mlxd_requests_total", ("GET", "/metrics", "200")] == 1
    for name in ("mlxd_request_duration_seconds", "mlxd_time_to_first_token_seconds"):
        assert after[f"{name}_count", (COMPLETIONS,)] == 1
        assert after[f"{name}_sum", (COMPLETIONS,)] > 0
    assert after["mlxd_queue_wait_seconds_count", ("true",)] == 1
    assert after["mlxd_queue_wait_seconds_sum", ("true",)] > 0
    assert after["mlxd_tokens_total", ("completion",)] == 3
    assert after["mlxd_tokens_total", ("prompt",)] > before["mlxd_tokens_total", ("prompt",)] == 0
    assert (before["mlxd_models_loaded", ()], after["mlxd_models_loaded", ()]) == (0, 1)
    assert after["mlxd_model_loads_total", ("loaded",)] == 1
    parts = {labels[0]: value for (name, labels), value in after.items() if name == "mlxd_memory_bytes"}
    assert parts["weights"] > 0
    assert sum(parts.values()) == after["mlxd_memory_reserved_bytes", ()]
    assert after["mlxd_memory_limit_bytes", ()] == 16_000_000


async def test_an_eviction_and_a_failed_load_are_counted(tmp_path: Path) -> None:
    """And the answers that they end in."""
    async with metered(tmp_path) as (served, backend, clock):
        assert await ask(served, clock, "a") == 200
        assert await ask(served, clock, "b") == 200
        backend.fail_load("a", LoadFailed("broken"))
        assert await ask(served, clock, "a") == 500
        after = await scrape(served)
    assert after["mlxd_model_loads_total", ("loaded",)] == 2
    assert after["mlxd_model_loads_total", ("failed",)] == 1
    assert after["mlxd_model_evictions_total", ()] == 2
    assert after["mlxd_model_unloads_total", ()] == 2
    assert after["mlxd_requests_total", ("POST", COMPLETIONS, "500")] == 1


async def test_who_waits_and_what_runs_is_read_at_the_scrape(tmp_path: Path) -> None:
    """The queue while a load is held; nothing of it afterwards."""
    async with metered(tmp_path) as (served, backend, clock):
        backend.hold_loads(hold=True)
        task = asyncio.ensure_future(served.post(COMPLETIONS, {"model": "a", "prompt": "hello", "max_tokens": 3}))
        async with asyncio.timeout(30):
            while served.context.pool.queue_length == 0:  # noqa: ASYNC110  (it has no event)
                await asyncio.sleep(0)
        waiting = await scrape(served)
        status, _, body = await served.get("/status")
        shown = json.loads(body)
        backend.hold_loads(hold=False)
        await finish(task, clock)
        after = await scrape(served)
    assert (waiting["mlxd_queue_length", ()], after["mlxd_queue_length", ()]) == (1, 0)
    assert waiting["mlxd_memory_bytes", ("loading",)] > 0
    assert (status, shown["pool"]["waiting"], shown["pool"]["queue"][0]["model"]) == (200, 1, "a")
    assert [request["model"] for request in shown["requests"]] == ["a"]


async def test_upstreams_and_their_breakers_are_counted() -> None:
    """By target and by what came of it; five failures open the breaker."""
    async with upstream() as far:
        providers = {"one": {"base_url": far.url, "auth": {"env": "KEY"}}}
        rules = {"r": {"match": "big", "mode": "always", "to": ["one/a"]}}
        document = {"cloud": {"enabled": True, "providers": providers, "rules": rules}}
        async with serving(ScriptedPool(), document=document, environ={"KEY": KEY}) as served:
            body = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
            assert (await served.post("/v1/chat/completions", body))[0] == 200
            before = await scrape(served)
            far.behaviour, far.status = "refuse", 500
            for _ in range(5):
                await served.post("/v1/chat/completions", body)
            after = await scrape(served)
    assert before["mlxd_cloud_attempts_total", ("ok", "one/a")] == 1
    assert before["mlxd_cloud_breaker", ("closed", "one/a")] == 1
    assert after["mlxd_cloud_attempts_total", ("upstream_error", "one/a")] >= 5
    assert (after["mlxd_cloud_breaker", ("open", "one/a")], after["mlxd_cloud_breaker", ("closed", "one/a")]) == (1, 0)


async def test_paths_that_clients_think_of_make_no_series() -> None:
    """Nor do methods; a scrape stays as large as the table of routes."""
    async with serving(ScriptedPool([*say("hello"), *end()])) as served:
        for path in ("/nope/1", "/nope/2", "/v1/models/x"):
            await served.get(path)
        async with served.http.request("PUT", f"{served.url}/nope"):
            pass
        after = await scrape(served)
    routes = {labels[1] for name, labels in after if name == "mlxd_requests_total"}
    assert routes == {"none", "/v1/models/{id}"}
    assert after["mlxd_requests_total", ("other", "none", "404")] == 1


async def test_a_key_sees_the_status_of_its_models(tmp_path: Path) -> None:
    """And nobody without a key sees status or metrics, when there are keys."""
    async with metered(tmp_path, pool={"memory": "16MB"}) as (served, _, clock):
        assert [await ask(served, clock, model) for model in ("a", "b")] == [200, 200]
        _, secret = await served.context.api_keys.create("app", ["b"], None)
        refused = [(await served.get(path))[0] for path in ("/metrics", "/status")]
        shown = json.loads((await served.get("/status", x_api_key=secret))[2])
    assert refused == [401, 401]
    assert [model["id"] for model in shown["pool"]["models"]] == ["b"]


async def test_rows_of_the_request_log_are_read_where_they_are_counted() -> None:
    """Those that were written and those that were lost."""
    metrics, state = Metrics(), {"written": 0, "dropped": 0}
    metrics.watch_audit(lambda: state)
    async with serving(ScriptedPool(), metrics=metrics) as served:
        before = await scrape(served)
        state |= {"written": 7, "dropped": 2}
        after = await scrape(served)
    rows = [("mlxd_audit_rows_total", (fate,)) for fate in ("written", "dropped")]
    assert [(before[row], after[row]) for row in rows] == [(0, 7), (0, 2)]
