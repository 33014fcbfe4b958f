"""mlxd, mlx_lm.server and a bare BatchGenerator on the same model, interleaved and repeated."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.bench.process import Worker, read_cpu_s

# streams → requests of each, so that every measurement is long enough and none takes more than some seconds
STREAMS = {1: 4, 8: 4, 16: 3, 32: 2}
MAX_TOKENS = 128
LATENCY_TOKENS = 16
SINGLE_REQUESTS = 20

Address = dict[str, Any]
Measurements = dict[str, dict[str, list[float]]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Row → system → one value per round; rates are better when higher, times and costs when lower.

    The CPU time of a token is what the clock's figures come from when cores are scarce, and other work on the machine
    hardly moves it.
    """

    rates: Measurements = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    times_ms: Measurements = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    costs_us: Measurements = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))


def compare(rounds: int, client: Worker, bare: Worker, servers: dict[str, Address], pids: dict[str, int]) -> Comparison:
    """Measure all systems *rounds* times, each figure of all systems in direct succession, and in turns first.

    A round before them warms up what compiles or fills on first use, and is not counted.
    """
    result = Comparison()
    for number in range(rounds + 1):
        kept = result if number else Comparison()
        systems = _rotate(["bare", *servers], number)
        for system in systems:
            ask = _asker(system, client, bare, servers)
            ttft = ask(measure="ttft", count=SINGLE_REQUESTS)
            kept.times_ms["TTFT, ms"][system].append(median(ttft["ms"]))
        for system in systems:
            ask = _asker(system, client, bare, servers)
            latency = ask(measure="latency", count=SINGLE_REQUESTS, max_tokens=LATENCY_TOKENS)
            kept.times_ms[f"{LATENCY_TOKENS} tokens, not streamed, ms"][system].append(median(latency["ms"]))
        for streams, requests in STREAMS.items():
            for system in systems:
                ask = _asker(system, client, bare, servers)
                cpu_s = read_cpu_s(pids[system])
                answer = ask(measure="throughput", streams=streams, requests=requests, max_tokens=MAX_TOKENS)
                cpu_s = read_cpu_s(pids[system]) - cpu_s
                with_streams = f"{streams} stream{'s' * (streams > 1)}"
                kept.rates[f"tokens/s, {with_streams}"][system].append(answer["tokens_per_s"])
                cost_us = cpu_s * 1e6 / (streams * requests * MAX_TOKENS)
                kept.costs_us[f"CPU per token, µs, {with_streams}"][system].append(cost_us)
        print(f"round {number} of {rounds}{'' if number else ' (warm-up)'} done", file=sys.stderr, flush=True)
    return result


def _rotate(systems: list[str], by: int) -> list[str]:
    shift = by % len(systems)
    return systems[shift:] + systems[:shift]


def _asker(system: str, client: Worker, bare: Worker, servers: dict[str, Address]) -> Any:
    def ask(**command: Any) -> dict[str, Any]:
        return bare.ask(**command) if system == "bare" else client.ask(**servers[system], **command)

    return ask


def format_comparison(result: Comparison) -> str:
    """Return the table: medians, and medians of the ratios within each round; a ratio over 1 is in mlxd's favour."""
    lines = [
        "| | bare | mlx_lm.server | mlxd | mlxd : bare | mlxd : mlx_lm.server |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for measurements, is_rate in ((result.rates, True), (result.times_ms, False), (result.costs_us, False)):
        for row, values in measurements.items():
            figures = [_show(median(values[system])) for system in ("bare", "mlx_lm.server", "mlxd")]
            ratios = [_ratio(values["mlxd"], values[other], is_rate=is_rate) for other in ("bare", "mlx_lm.server")]
            lines.append(f"| {row} | {' | '.join(figures + ratios)} |")
    return "\n".join(lines)


def _ratio(ours: list[float], theirs: list[float], *, is_rate: bool) -> str:
    ratios = [a / b if is_rate else b / a for a, b in zip(ours, theirs, strict=True)]
    return f"**{median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"


def _show(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
