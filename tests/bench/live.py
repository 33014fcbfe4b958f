"""What one daemon costs and how live it is: idle, started from a shell, steered under load, loading beside a stream."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from mlxctl.client import Client
from tests.bench.process import Worker, read_cpu_s, read_rss_bytes, read_wakeups
from tests.support.daemon import RealDaemon

Rows = list[tuple[str, str]]

IDLE_S = 20
STARTS = 21
CHANGES = 15
LOADS = 5
GAP_TOKENS = 1024
HELD_STREAMS = 8
HELD_TOKENS = 1024
_SETTLE_TIMEOUT_S = 30


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
    """Return how long `pool set-memory` takes on an idle daemon and beside streams."""
    rows = _time_changes(daemon, "idle")
    client.send(measure="hold", streams=HELD_STREAMS, max_tokens=HELD_TOKENS, **address)
    client.receive()  # all have begun
    rows += _time_changes(daemon, f"{HELD_STREAMS} streams")
    client.send(stop=True)
    client.receive()
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


def _time_changes(daemon: RealDaemon, name: str) -> Rows:
    values = itertools.cycle(["6GB", "7GB"])  # both hold all: what is measured is the commit, and not an unload
    command_s = [_time(lambda: daemon.mlxctl("pool", "set-memory", next(values))) for _ in range(CHANGES)]
    with Client(daemon.home / "mlxd.sock", 10) as control:
        answer_s = [
            _time(lambda: control.request("settings.set", {"changes": {"pool.memory": next(values)}}))
            for _ in range(CHANGES)
        ]
    return [
        (f"`mlxctl pool set-memory`, {name}", f"{median(command_s) * 1000:.0f} ms"),
        (
            f"the daemon's answer to it, {name}",
            f"{median(answer_s) * 1000:.1f} ms (worst of {CHANGES}: {max(answer_s) * 1000:.1f} ms)",
        ),
    ]


def _run(daemon: RealDaemon, command: list[str]) -> None:
    subprocess.run(command, env=daemon.environment, stdout=subprocess.DEVNULL, check=True)


def _time(act: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    act()
    return time.perf_counter() - start_s
