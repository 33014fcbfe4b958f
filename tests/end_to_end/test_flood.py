"""Far more requests at once than the queue takes."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.control import Client
from tests.support.daemon import RealDaemon, running_daemon
from tests.support.tiny_model import write_tiny_model

N_REQUESTS = 500
SIZE, PER_MODEL, SLOTS = 16, 10, 4
CONFIG = f"""\
[http]
port = 0
[queue]
size = {SIZE}
per_model = {PER_MODEL}
[engine]
max_sequences = {SLOTS}
"""
# A connection with its request costs some 50 kB at each end; a flood that is kept in memory would cost more.
MOST_GROWTH_KB = 150_000


async def test_each_of_500_requests_is_answered(tmp_path: Path) -> None:
    """On a small queue each gets 200, or 429 with a time to come back; none hangs, nothing is left, memory stays."""
    home = tmp_path / "home"
    for seed, name in enumerate(("a", "b")):
        write_tiny_model(home / "models" / name, seed=seed)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with running_daemon(home, CONFIG) as daemon:
        url = daemon.ask("status")["http"]["url"]
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await _flood(http, url, 20)
            before_kb = _rss_kb(daemon)
            control = await Client.connect(daemon.home / "mlxd.sock")
            async with asyncio.timeout(120), control, asyncio.TaskGroup() as group:
                flood = group.create_task(_flood(http, url, N_REQUESTS))
                group.create_task(_watch(control, flood))
        answers = flood.result()

        counts = Counter((status, code) for status, code, _ in answers)
        assert sum(counts.values()) == N_REQUESTS
        assert set(counts) <= {(200, None), (429, "queue_full")}
        assert counts[200, None] >= SIZE
        assert counts[429, "queue_full"] > 0
        assert all(1 <= int(after) <= 60 for status, _, after in answers if status == 429)
        left = daemon.ask("ps")
        assert (left["queue"], left["requests"]) == ([], [])
        assert all(model["leases"] == model["running"] == 0 for model in left["models"])
        assert _rss_kb(daemon) - before_kb < MOST_GROWTH_KB


async def _flood(http: aiohttp.ClientSession, url: str, n_requests: int) -> list[tuple[int, str | None, str]]:
    """Send so many requests at once, for two models in turn; return status, code and Retry-After of each."""

    async def ask(number: int) -> tuple[int, str | None, str]:
        body = {"model": "ab"[number % 2], "prompt": f"number {number}", "max_tokens": 8}
        async with http.post(f"{url}/v1/completions", json=body) as response:
            answer: dict[str, Any] = await response.json()
            return response.status, answer.get("error", {}).get("code"), response.headers.get("Retry-After", "")

    return await asyncio.gather(*(ask(number) for number in range(n_requests)))


async def _watch(control: Client, flood: asyncio.Future[Any]) -> None:
    """Look at the queue until the flood is over."""
    while not flood.done():
        shown = await control.ask("queue.show")
        assert shown["waiting"] <= SIZE, shown


def _rss_kb(daemon: RealDaemon) -> int:
    assert daemon.process is not None
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(daemon.process.pid)], capture_output=True, text=True, check=True
    )
    return int(shown.stdout)
