"""`python -m tests.soak`: random traffic and changes and bad neighbors on one daemon; exit 1 when anything is wrong.

Holds that each answer is the one that the model gave alone beforehand, that every request ends, that none is answered
500, that `/ready` says what `status` says, that at the end nothing is leased, queued or reserved and `status --check`
finds nothing, and that memory does not grow once it is warm.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median

import aiohttp

from mlxctl.client import Client
from tests.bench.process import read_rss_bytes
from tests.soak.intruder import prepare
from tests.soak.neighbor import Neighbors
from tests.soak.steering import COMMENT, CONFIG, Steering
from tests.soak.traffic import Traffic, learn_all, make_cases, make_cloud_cases
from tests.support.daemon import RealDaemon
from tests.support.tiny_model import write_tiny_model
from tests.support.upstream import upstream

MODELS = ["a", "b", "c"]
WORKERS = 12
# Of the whole time: by then each model was loaded many times and every path has run.
WARM_UP = 0.4
# Between the first and the last third of what follows the warm-up. The allocator's arenas move by some MB either way; a
# leaked model, request or KV of a row at every tenth request would be ten times as much in ten minutes.
MOST_GROWTH_BYTES = 12_000_000
_SAMPLE_S = 1.0
_QUIET_S = 90.0


class Memory:
    """Resident memory of a process over time."""

    def __init__(self, pid: int) -> None:
        """Take the process; nothing is sampled yet."""
        self._pid = pid
        self.samples: list[int] = []

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            self.samples.append(await asyncio.to_thread(read_rss_bytes, self._pid))
            await asyncio.sleep(_SAMPLE_S)

    @property
    def parts_bytes(self) -> tuple[float, float, int]:
        """Medians of the first and of the last third after the warm-up, and the highest sample of all."""
        warm = self.samples[int(len(self.samples) * WARM_UP) :]
        third = max(1, len(warm) // 3)
        return median(warm[:third]), median(warm[-third:]), max(self.samples)


def main() -> int:
    """Run it and print the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of all choices (default: another one each time; it is printed)")
    parser.add_argument("--workers", type=int, default=WORKERS, help="requests at a time (default: %(default)s)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"soak of {arguments.minutes:g} minutes, {arguments.workers} workers, --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mlxd-soak-") as folder:
        failures = asyncio.run(soak(Path(folder) / "home", arguments.minutes * 60, seed, arguments.workers))
    for failure in failures:
        print(f"WRONG: {failure}")
    print("nothing is wrong" if not failures else f"{len(failures)} things are wrong")
    return 1 if failures else 0


async def soak(home: Path, seconds: float, seed: int, workers: int) -> list[str]:
    """Run a daemon for so long, print what happened, and return what is wrong."""
    for number, name in enumerate(MODELS):
        write_tiny_model(home / "models" / name, seed=number)
    faults = home.parent / "faults"
    daemon = RealDaemon(home, environment=prepare(faults))
    daemon.configure(CONFIG)
    await asyncio.to_thread(daemon.start)
    assert daemon.process is not None
    try:
        async with upstream() as far:
            neighbors = Neighbors(daemon.base_url, home, faults, MODELS, seed)
            failures = await _load(daemon, far.url, seconds, seed, workers, neighbors)
        checked = await asyncio.to_thread(lambda: daemon.mlxctl("status", "--check", check=False))
        if checked.returncode != 0:
            failures.append(f"status --check at the end: {checked.stdout}{checked.stderr}")
        status = await asyncio.to_thread(daemon.terminate)
        if status != 0:
            failures.append(f"the daemon ended with {status}")
        log = daemon.log()
        if "Traceback" in log:
            place = log.index("Traceback")
            failures.append(f"the daemon's log has a traceback: {log[max(0, place - 500) : place + 3000]}")
        return failures
    finally:
        if daemon.process.poll() is None:
            daemon.kill()


async def _load(
    daemon: RealDaemon, upstream_url: str, seconds: float, seed: int, workers: int, neighbors: Neighbors
) -> list[str]:
    assert daemon.process is not None
    url, socket = daemon.base_url, daemon.home / "mlxd.sock"
    known = await learn_all(url, make_cases(MODELS, random.Random(f"{seed} cases")))
    print(f"{len(known)} answers are known", flush=True)
    traffic = Traffic(url, [*known, *make_cloud_cases()])
    steering = Steering(socket, daemon.config, MODELS, upstream_url, seed)
    memory = Memory(daemon.process.pid)
    stop = threading.Event()
    watching = asyncio.create_task(memory.watch())
    steered = asyncio.create_task(asyncio.to_thread(steering.run, stop))
    asking = asyncio.create_task(traffic.run(seed, workers))
    leaving = asyncio.Event()
    beside = asyncio.create_task(neighbors.run(leaving))
    probing = asyncio.create_task(_probe(url, socket, leaving))
    running = {steered, asking, beside, probing}
    await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    leaving.set()
    await steered
    traffic.is_over = True
    _, _, lies = await asyncio.gather(asking, beside, probing)
    watching.cancel()

    def end() -> list[str]:
        with Client(socket, 60) as client:
            steering.calm(client)
            return _wait_quiet(client)

    failures = await asyncio.to_thread(end)
    await traffic.ask_all()
    failures += await asyncio.to_thread(_unload_all, socket)
    failures += [*traffic.failures, *steering.failures, *neighbors.failures, *lies]
    if not traffic.ends["streamed"] or not traffic.ends["whole"]:
        failures.append("no answer was compared")
    if traffic.n_failures > len(traffic.failures):
        failures.append(f"{traffic.n_failures - len(traffic.failures)} more requests")
    if COMMENT not in daemon.config.read_text():
        failures.append("a comment in config.toml was lost")
    early_bytes, late_bytes, most_bytes = memory.parts_bytes
    if late_bytes - early_bytes > MOST_GROWTH_BYTES:
        failures.append(f"memory grew by {(late_bytes - early_bytes) / 1e6:.1f} MB after the warm-up")
    _print_counts("requests", traffic.ends)
    _print_counts("changes", steering.done)
    _print_counts("refused changes", steering.refused)
    _print_counts("bad neighbors", neighbors.ends)
    print(f"longest request: {traffic.longest_s:.1f} s; longest of a bad neighbor: {neighbors.longest_s:.1f} s")
    print(
        f"RSS after the warm-up: {early_bytes / 1e6:.1f} MB, at the end: {late_bytes / 1e6:.1f} MB"
        f" (bound: +{MOST_GROWTH_BYTES / 1e6:.0f} MB), at most {most_bytes / 1e6:.1f} MB, {len(memory.samples)} samples"
    )
    return failures


async def _probe(url: str, socket: Path, leaving: asyncio.Event) -> list[str]:
    """Ask `/ready` between two looks at the status, again and again; return where it says something else than both."""
    lies = []

    def is_ready() -> bool:
        with Client(socket, 60) as client:
            return bool(client.request("status").result["ready"])

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_QUIET_S)) as session:
        while not leaving.is_set():
            before = await asyncio.to_thread(is_ready)
            async with session.get(url.removesuffix("/v1") + "/ready") as response:
                said = response.status == 200
            after = await asyncio.to_thread(is_ready)
            if before == after != said:
                lies.append(f"/ready was {said}, and status said {before} before and after")
            await asyncio.gather(asyncio.wait_for(leaving.wait(), 1), return_exceptions=True)
    return lies[:20]


def _wait_quiet(client: Client) -> list[str]:
    """Wait until nothing runs; return what still does after a while."""
    deadline_s = time.monotonic() + _QUIET_S
    while busy := _find_busy(client):
        if time.monotonic() > deadline_s:
            return [f"not quiet after {_QUIET_S:.0f} s: {what}" for what in busy]
        time.sleep(0.2)
    return []


def _find_busy(client: Client) -> list[str]:
    status = client.request("status").result
    pool = status["pool"]
    busy = [f"request {request['id']} on {request['model']}" for request in status["requests"]]
    busy += [f"waiting {wait['request_id']}: {wait['reason']}" for wait in pool["queue"]]
    busy += [f"operation {operation['op']} ({operation['kind']})" for operation in status["operations"]]
    for model in pool["models"]:
        held = {name: model[name] for name in ("running", "paused", "waiting", "leases") if model[name]}
        if held or model["state"] not in {"ready", "unloaded", "failed"}:
            busy.append(f"{model['id']} is {model['state']}: {held}")
    busy += [f"problem: {problem}" for problem in status["problems"]]
    return busy


def _unload_all(socket: Path) -> list[str]:
    """Unload every model; return what is reserved although there is nothing."""
    with Client(socket, 60) as client:
        for model in MODELS:
            client.request("model.unload", {"model": model})
        failures = _wait_quiet(client)
        memory = client.request("pool.show").result["memory"]
        if memory["reserved_bytes"]:
            failures.append(f"bytes are reserved without a model: {memory}")
    return failures


def _print_counts(what: str, counts: Counter[str]) -> None:
    print(f"{counts.total()} {what}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))


if __name__ == "__main__":
    sys.exit(main())
