"""What routing costs: a match among many rules, a request that goes through, and streams that are held open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any

import aiohttp

from mlxd.cloud.rules import compile_rules
from mlxd.protocol.table import decode
from tests.bench.process import read_rss_bytes
from tests.support.daemon import RealDaemon
from tests.support.upstream import Upstream, upstream

Rows = list[tuple[str, str]]

FEW_RULES, MANY_RULES = 10, 10_000
MATCHES = 2_000
ROUNDS, REQUESTS = 7, 100
STREAMS = 200
NAME = "vendor/model-17-instruct"
_KINDS = ("exact:other-{}", "prefix:p{}-", "glob:g{}-*-x", "regex:r{}-[a-z]+")


def measure_matches() -> Rows:
    """Return the time of a match that the last rule decides, among few rules and among many of all kinds."""
    times_s = {number: _time_match(number) for number in (FEW_RULES, MANY_RULES)}
    few, many = times_s[FEW_RULES], times_s[MANY_RULES]
    return [
        (f"cloud: a match among {number} rules", f"{seconds * 1e6:.2f} us") for number, seconds in times_s.items()
    ] + [(f"cloud: {MANY_RULES} rules against {FEW_RULES}", f"{many / few:.2f}")]


def _time_match(number: int) -> float:
    rules: dict[str, Any] = {
        f"r{index}": {"match": _KINDS[index % len(_KINDS)].format(index), "mode": "never"}
        for index in range(number - 1)
    }
    rules["last"] = {"match": "glob:vendor/*", "mode": "never", "priority": -1}
    compiled = compile_rules(decode({"cloud": {"rules": rules}}, 10**9).cloud)
    decided = compiled.match(NAME)
    assert decided is not None
    assert decided.id == "last"
    begun_s = time.perf_counter()
    for _ in range(MATCHES):
        compiled.match(NAME)
    return (time.perf_counter() - begun_s) / MATCHES


def measure_routed(daemon: RealDaemon) -> Rows:
    """Return the latency of a routed request against a direct one, and what held streams take of memory."""
    return asyncio.run(_measure(daemon))


async def _measure(daemon: RealDaemon) -> Rows:
    async with upstream() as far, _session() as session:
        await asyncio.to_thread(_configure, daemon, far)
        ours = f"{await asyncio.to_thread(lambda: daemon.base_url)}/chat/completions"
        theirs = f"{far.url}/chat/completions"
        rows: Rows = []
        for stream in (False, True):
            rows += await _compare(session, theirs, ours, stream=stream)
        rows += await _hold(session, daemon, far, ours)
        await asyncio.to_thread(daemon.mlxctl, "cloud", "disable")
    return rows


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


def _configure(daemon: RealDaemon, far: Upstream) -> None:
    daemon.mlxctl("cloud", "provider", "add", "far", "--base-url", far.url, "--timeouts", "idle=10m")
    daemon.mlxctl("cloud", "rule", "add", "bench", "--match", "exact:routed", "--to", "far/m")
    daemon.mlxctl("cloud", "enable")


async def _compare(session: aiohttp.ClientSession, theirs: str, ours: str, *, stream: bool) -> Rows:
    """Take both in turns within each round; the ratio is the median of the rounds'."""
    direct: list[float] = []
    routed: list[float] = []
    for _ in range(ROUNDS):
        for url, times_s in ((theirs, direct), (ours, routed)):
            begun_s = time.perf_counter()
            for _ in range(REQUESTS):
                async with session.post(url, json=_body(stream=stream)) as answer:
                    await answer.read()
                    assert answer.status == 200
            times_s.append((time.perf_counter() - begun_s) / REQUESTS)
    ratio = median(ours_s / theirs_s for ours_s, theirs_s in zip(routed, direct, strict=True))
    kind = "streamed" if stream else "whole"
    direct_ms = 1000 * median(direct)
    added_ms = 1000 * (median(routed) - median(direct))
    return [
        (f"cloud: a {kind} answer routed against direct", f"{ratio:.2f} ({added_ms:+.2f} ms on {direct_ms:.2f} ms)")
    ]


async def _hold(session: aiohttp.ClientSession, daemon: RealDaemon, far: Upstream, url: str) -> Rows:
    assert daemon.process is not None
    before = read_rss_bytes(daemon.process.pid)
    far.behaviour = "hang_after_content"
    answers = [await session.post(url, json=_body(stream=True)) for _ in range(STREAMS)]
    for answer in answers:
        await answer.content.readany()
    after = read_rss_bytes(daemon.process.pid)
    for answer in answers:
        answer.close()
    far.behaviour = "answer"
    each = (after - before) / STREAMS
    return [(f"cloud: {STREAMS} routed streams at once", f"{(after - before) / 1e6:.1f} MB, {each / 1e3:.0f} kB each")]


def _body(*, stream: bool) -> dict[str, Any]:
    return {"model": "routed", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
