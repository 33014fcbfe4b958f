"""`python -m tests.bench`: run all of it and write RESULTS.md beside this file."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from mlxd import __version__
from tests.bench import cloud, compare, live, prompts, schema
from tests.bench.process import Worker, running_mlx_lm_server
from tests.support.daemon import running_daemon
from tests.support.tiny_model import write_tiny_model

RESULTS = Path(__file__).with_name("RESULTS.md")
MODEL, OTHER_MODEL = "tiny", "other"
CONFIG = '[http]\nport = 0\n\n[pool]\nmemory = "6GB"\n'
SECTIONS = ("compare", "idle", "starts", "changes", "gaps", "schema", "cloud", "prompts")


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of the comparison (default: %(default)s)")
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="this section; may be repeated (default: all)"
    )
    parser.add_argument(
        "--model",
        choices=prompts.MODELS,
        action="append",
        help="of the section prompts; may be repeated (default: all)",
    )
    parser.add_argument("--output", type=Path, help=f"file to write (default: {RESULTS.name}; with --only: none)")
    arguments = parser.parse_args()
    sections = arguments.only or list(SECTIONS)
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as folder:
        table, rows = run(Path(folder), sections, arguments.rounds)
        reuse = ""
        if "prompts" in sections:
            reuse = run_prompts(Path(folder) / "prompts", arguments.rounds, arguments.model or list(prompts.MODELS))
    report = format_report(table, rows, reuse, arguments.rounds)
    print(report)
    output = arguments.output if arguments.output is not None else None if arguments.only else RESULTS
    if output is not None:
        output.write_text(report)
        print(f"written to {output}", file=sys.stderr)


def run_prompts(folder: Path, rounds: int, models: list[str]) -> str:
    """Measure what is computed of prompts that were seen before, and return the tables."""
    prompts.write_models(folder / "models", models)
    with running_daemon(folder, CONFIG) as daemon:
        url = urlsplit(daemon.base_url)
        assert url.hostname is not None
        assert url.port is not None
        return prompts.measure(daemon, url.hostname, url.port, folder / "models", models, rounds)


def run(folder: Path, sections: list[str], rounds: int) -> tuple[str, live.Rows]:
    """Measure everything else; return the table of the comparison and the rows of one daemon."""
    home = folder / "home"
    model = write_tiny_model(home / "models" / MODEL, layers=4, width=64, context=4096)
    # About 170 MB: long enough to load that a stream shows it.
    write_tiny_model(home / "models" / OTHER_MODEL, layers=16, width=512, heads=8)
    rows: live.Rows = []
    table = ""
    with running_daemon(home, CONFIG) as daemon, Worker("tests.bench.client") as client:
        assert daemon.process is not None
        url = urlsplit(daemon.base_url)
        ours = {"host": url.hostname, "port": url.port, "model": MODEL}
        if "idle" in sections:
            rows += live.measure_idle(daemon.process.pid, "idle, no model ever loaded")
        if "starts" in sections:
            live.wait_until_settled(daemon.process.pid)
            rows += live.measure_starts(daemon)
        daemon.mlxctl("model", "load", MODEL, "--wait")
        if "idle" in sections:
            rows += live.measure_idle(daemon.process.pid, "idle, one model loaded")
        if "changes" in sections:
            rows += live.measure_changes(daemon, client, ours)
        if "gaps" in sections:
            rows += live.measure_load_gap(daemon, client, ours, OTHER_MODEL)
        if "schema" in sections:
            rows += schema.measure_schema(rounds, client, ours)
        if "cloud" in sections:
            rows += cloud.measure_matches() + cloud.measure_routed(daemon)
        if "compare" in sections:
            with (
                running_mlx_lm_server(model, folder / "mlx_lm.log") as (port, pid),
                Worker("tests.bench.bare", str(model)) as bare,
            ):
                theirs = {"host": "127.0.0.1", "port": port, "model": "default_model"}
                servers: dict[str, compare.Address] = {"mlx_lm.server": theirs, "mlxd": ours}
                pids = {"bare": bare.pid, "mlx_lm.server": pid, "mlxd": daemon.process.pid}
                result = compare.compare(rounds, client, bare, servers, pids)
            table = compare.format_comparison(result)
    return table, rows


def format_report(table: str, rows: live.Rows, reuse: str, rounds: int) -> str:
    """Return the Markdown page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm", "aiohttp"))
    about = (
        "# Benchmarks\n\n"
        f"mlxd {__version__} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores; "
        f"Python {platform.python_version()}, {versions}; {datetime.now(UTC):%Y-%m-%d}.\n\n"
        "Repeat with `make bench` (about twenty minutes; leave the machine alone meanwhile). "
        "`make bench BENCH_ARGS='--only compare --rounds 9'` runs a part.\n"
    )
    parts = [about]
    if table:
        parts.append(
            "## Against mlx_lm.server and a bare BatchGenerator\n\n"
            "A random llama (4 layers, width 64, float32), so that what is seen is the server and not the model. One "
            f"client process, closed loop; {compare.MAX_TOKENS} tokens per answer, greedy, streamed, no prompt twice. "
            "*Bare* is mlx-lm's `BatchGenerator` in a loop on prompts that are tokenized already: no HTTP, no text. "
            f"Medians of {rounds} rounds, all systems in turns within each; ratios are medians of the rounds' ratios "
            "(lowest-highest), and over 1 is in mlxd's favour.\n\n" + table + "\n"
        )
    if rows:
        lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
        parts.append(f"## One daemon\n\n| | |\n|---|---|\n{lines}\n")
    if reuse:
        parts.append(
            "## Prompts that were seen before\n\n"
            "Tiny random models of several kinds of cache, a template that opens thoughts and drops those of earlier "
            f"turns, a system prompt of 3,000 tokens. In each round both servers live one session of {prompts.TURNS} "
            "turns with a head of its own, in turns. Shares of the prompt out of the cache are the lowest of all "
            "requests, mlxd's first and mlx_lm.server's in brackets: the turns of a chat, the result of a tool, the "
            "same system prompt with another question, the last message edited, the same request again, and a text "
            "without a template with another ending. *TTFT, warm* and *ten turns* are ratios, and over 1 is in mlxd's "
            "favour.\n\n" + reuse + "\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    main()
