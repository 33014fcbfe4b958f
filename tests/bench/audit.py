"""`python -m tests.bench.audit`: the request log with a million rows: how fast it takes them, and answers questions.

In one process and on one thread; what is asked is asked as the control socket asks it, but for the socket.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mlxd.audit import Filter, RequestRecord, RequestStatus
from mlxd.audit.query import read_page, read_stats
from mlxd.audit.retention import Limits
from mlxd.audit.schema import open_for_reading
from mlxd.audit.writer import BATCH_ROWS, Writer

ROWS = 1_000_000
_ROUNDS = 5
_HOUR_MS = 3_600_000
_PERIOD_MS = 30 * 24 * _HOUR_MS


def main() -> None:
    """Fill a log and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.audit", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the log (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlxd-bench-") as folder:
        path = Path(folder) / "audit.db"
        for name, value in measure(path, arguments.rows):
            print(f"{name:<58} {value}", flush=True)


def measure(path: Path, n_rows: int) -> Iterator[tuple[str, str]]:
    """Yield what was measured as it comes."""
    now_ms = int(time.time() * 1000)
    rate, put_us = _fill(path, n_rows, now_ms)
    yield f"{n_rows} rows through the queue, batches of up to {BATCH_ROWS}", f"{rate:.0f} rows/s"
    yield "the event loop's part of a row", f"{put_us:.1f} us"
    yield "size of the file", f"{path.stat().st_size / 1e6:.0f} MB, {path.stat().st_size / n_rows:.0f} bytes a row"
    questions: dict[str, Callable[[sqlite3.Connection], Any]] = {
        "list, newest 50": lambda log: _page(log, Filter()),
        "list, newest 50 of a model": lambda log: _page(log, Filter(model="model-3")),
        "list, newest 50 errors": lambda log: _page(log, Filter(status="error")),
        "list, 50 of a key since an hour": lambda log: _page(log, Filter(key="key-1", since_ms=now_ms - _HOUR_MS)),
        "list, a request by its id": lambda log: _page(log, Filter(request="req-12345")),
        "stats, all": lambda log: read_stats(log, Filter()),
        "stats, the last day": lambda log: read_stats(log, Filter(since_ms=now_ms - 24 * _HOUR_MS)),
        "stats, one model": lambda log: read_stats(log, Filter(model="model-3")),
        "stats, errors": lambda log: read_stats(log, Filter(status="error")),
        "export, a page of 1000": lambda log: _page(log, Filter(), limit=1000),
    }
    for name, ask in questions.items():
        times = []
        for _ in range(_ROUNDS):
            begun_s = time.perf_counter()
            with closing(open_for_reading(path)) as log:
                ask(log)
            times.append(time.perf_counter() - begun_s)
        yield (
            f"{name} (median of {_ROUNDS}, slowest)",
            f"{1000 * sorted(times)[_ROUNDS // 2]:.1f} ms, {1000 * max(times):.1f} ms",
        )


def _page(log: sqlite3.Connection, chosen: Filter, limit: int = 50) -> object:
    return read_page(log, RequestRecord, chosen, limit=limit, cursor=None, oldest_first=False)


def _fill(path: Path, n_rows: int, now_ms: int) -> tuple[float, float]:
    """Return rows per second, all of them written, and microseconds that a caller waits for each."""
    dice = random.Random(7)
    writer = Writer(path, Limits(float("inf"), 1 << 50), queue_rows=n_rows)
    writer.start()
    put_s = work_s = 0.0
    step = 20_000
    for begin in range(0, n_rows, step):
        numbers = range(begin, min(begin + step, n_rows))
        rows = [_row(dice, number, now_ms - _PERIOD_MS + number * _PERIOD_MS // n_rows) for number in numbers]
        begun_s = time.perf_counter()
        for row in rows:
            writer.put(row)
        put_s += time.perf_counter() - begun_s
        writer.flush(600)
        work_s += time.perf_counter() - begun_s
    writer.close(60)
    if writer.state.written != n_rows:
        sys.exit(f"{writer.state.written} of {n_rows} rows were written: {writer.state.problem}")
    return n_rows / work_s, put_s / n_rows * 1e6


def _row(dice: random.Random, number: int, started_ms: int) -> RequestRecord:
    is_cloud = dice.random() < 0.3
    is_bad = dice.random() < 0.03
    return RequestRecord(
        request=f"req-{number}",
        started_ms=started_ms,
        endpoint="chat/completions",
        route="cloud" if is_cloud else "local",
        asked="some-model",
        model=f"model-{dice.randrange(6)}",
        target="provider/model" if is_cloud else None,
        rule="rule" if is_cloud else None,
        attempts=({"target": "provider/model", "status": 200, "code": None, "ms": 812},) if is_cloud else None,
        status=dice.choice(list(RequestStatus)[1:]) if is_bad else RequestStatus.OK,
        code="queue_full" if is_bad else None,
        http_status=200,
        prompt_tokens=dice.randrange(5000),
        cached_tokens=0,
        completion_tokens=dice.randrange(800),
        ttft_ms=int(dice.lognormvariate(5, 1)),
        duration_ms=int(dice.lognormvariate(8, 1)),
        tokens_per_s=dice.random() * 100,
        key=f"key-{dice.randrange(5)}",
        cost_micro_usd=dice.randrange(9000) if is_cloud else None,
    )


if __name__ == "__main__":
    main()
