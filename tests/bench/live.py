"""What one daemon costs and how live it is: idle, started from a shell, steered under load, loading beside a stream."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from mlxctl.client import Client
from tests.bench.process import Worker, read_cpu_s, read_rss_bytes, read_wakeups
from tests.support.daemon import RealDaemon

Rows = list[tuple[str, str]]

IDLE_S = 20
STARTS = 21
CHANGE_ROUNDS = 3
COMMANDS = 10  # of each round
ANSWERS = 100
LOADS = 5
GAP_TOKENS = 1024
HELD_STREAMS = 32
HELD_TOKENS = 1024
_SETTLE_TIMEOUT_S = 30
_MEASURED = {
    "command": "`mlxctl pool set-memory`",
    "change": "the daemon's answer to it",
    "ps": "the daemon's answer to `ps`",
}


def wait_until_settled(pid: int) -> None:
    """Return when the daemon has used no CPU for two seconds: what it imports behind its open sockets is then in."""
    deadline_s = time.monotonic() + _SETTLE_TIMEOUT_S
    before_s = -1.0
    while (now_s := read_cpu_s(pid)) - before_s > 0.01 and time.monotonic() < deadline_s:
        before_s = now_s
        time.sleep(2)


def measure_idle(pid: int, name: str) -> Rows:
    """Return memory, CPU and wake-ups of a process that nobody talks to."""
    wait_until_settled(pid)
    cpu_s, wakeups, start_s = read_cpu_s(pid), read_wakeups(pid), time.monotonic()
    time.sleep(IDLE_S)
    elapsed_s = time.monotonic() - start_s
    rows = [
        (f"{name}: RSS", f"{read_rss_bytes(pid) / 1e6:.0f} MB"),
        (f"{name}: CPU over {IDLE_S} s", f"{(read_cpu_s(pid) - cpu_s) / elapsed_s:.2%}"),
    ]
    woken = read_wakeups(pid)
    if wakeups is not None and woken is not None:
        rows.append((f"{name}: wake-ups per second, all threads", f"{(woken - wakeups) / elapsed_s:.1f}"))
    return rows


def measure_starts(daemon: RealDaemon) -> Rows:
    """Return how long `mlxctl status` takes beside a bare interpreter, in turns."""
    program = Path(sys.executable).with_name("mlxctl")
    status = [str(program), "status"] if program.exists() else [sys.executable, "-m", "mlxctl", "status"]
    times_s: dict[str, list[float]] = {"bare": [], "status": []}
    for _ in range(STARTS):
        for name, command in (("bare", [sys.executable, "-c", "pass"]), ("status", status)):
            times_s[name].append(_time(lambda command=command: _run(daemon, command)))  # type: ignore[misc]
    bare_s, status_s = median(times_s["bare"]), median(times_s["status"])
    return [
        ("`python -c pass`", f"{bare_s * 1000:.0f} ms"),
        ("`mlxctl status`", f"{status_s * 1000:.0f} ms, {status_s / bare_s:.1f} times the bare interpreter"),
    ]


def measure_changes(daemon: RealDaemon, client: Worker, address: dict[str, Any]) -> Rows:
    """Return how long `pool set-memory` and `ps` take on an idle daemon and beside streams, in turns."""
    idle, busy = _Answers(), _Answers()
    for _ in range(CHANGE_ROUNDS):
        idle.take(daemon)
        client.send(measure="hold", streams=HELD_STREAMS, max_tokens=HELD_TOKENS, **address)
        client.receive()  # all have begun
        busy.take(daemon)
        client.send(stop=True)
        client.receive()
    rows = []
    for what, shown in (
        ("command", "`mlxctl pool set-memory`"),
        ("change", "the daemon's answer to it"),
        ("ps", "`ps`"),
    ):
        before, after = _Spread.of(getattr(idle, what)), _Spread.of(getattr(busy, what))
        rows.append((f"{shown}, idle", f"{before}"))
        rows.append((f"{shown}, {HELD_STREAMS} streams", f"{after}; {after.against(before)} times the idle daemon's"))
    return rows


def measure_load_gap(daemon: RealDaemon, client: Worker, address: dict[str, Any], other_model: str) -> Rows:
    """Return the gaps between arrivals of one stream's tokens, undisturbed and while another model loads."""
    rows = []
    for name, is_loading in (("nothing else", False), ("another model loading", True)):
        gaps_ms, took_s = [], []
        for _ in range(LOADS):
            client.send(measure="gaps", max_tokens=GAP_TOKENS, **address)
            client.receive()  # it has begun
            if is_loading:
                took_s.append(_time(lambda: daemon.mlxctl("model", "load", other_model, "--wait")))
            gaps_ms.append(client.receive()["ms"])
            if is_loading:
                daemon.mlxctl("model", "unload", other_model, "--wait")
        longest_ms = [max(gaps) for gaps in gaps_ms]
        p99_ms = median(quantiles(gaps, n=100)[-1] for gaps in gaps_ms)
        shown = f"longest {median(longest_ms):.0f} ms (worst of {LOADS}: {max(longest_ms):.0f} ms), p99 {p99_ms:.1f} ms"
        loaded = f"; the load took {median(took_s):.1f} s" if took_s else ""
        rows.append((f"gap between tokens, {name}", shown + loaded))
    return rows


class _Answers:
    """Seconds of answers of one daemon in one situation."""

    def __init__(self) -> None:
        self.command: list[float] = []
        self.change: list[float] = []
        self.ps: list[float] = []

    def take(self, daemon: RealDaemon) -> None:
        """Measure a round; `ps` and changes take turns."""
        values = itertools.cycle(["6GB", "7GB"])  # both hold all: what is measured is the commit, and not an unload
        self.command += [_time(lambda: daemon.mlxctl("pool", "set-memory", next(values))) for _ in range(COMMANDS)]
        with Client(daemon.home / "mlxd.sock", 60) as control:
            for _ in range(ANSWERS):
                changes = {"pool.memory": next(values)}
                self.change.append(_time(lambda changes=changes: control.request("settings.set", {"changes": changes})))  # type: ignore[misc]
                self.ps.append(_time(lambda: control.request("ps")))


@dataclass(frozen=True, slots=True)
class _Spread:
    """The middle and the slow end of some times."""

    median_s: float
    p99_s: float
    count: int

    @classmethod
    def of(cls, times_s: list[float]) -> _Spread:
        return cls(median(times_s), quantiles(times_s, n=100, method="inclusive")[-1], len(times_s))

    def against(self, other: _Spread) -> str:
        """Return both ratios."""
        return f"{self.median_s / other.median_s:.1f} and {self.p99_s / other.p99_s:.1f}"

    def __str__(self) -> str:
        return f"median {self.median_s * 1000:.1f} ms, p99 {self.p99_s * 1000:.1f} ms of {self.count}"


def _run(daemon: RealDaemon, command: list[str]) -> None:
    subprocess.run(command, env=daemon.environment, stdout=subprocess.DEVNULL, check=True)


def _time(act: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s
