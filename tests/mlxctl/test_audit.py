"""`mlxctl audit`: tables, lines, exports a page at a time, filters and their slips."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlxctl.audit import parse_moment_ms
from mlxctl.cli import main
from mlxd.audit import ChangeRecord, RequestRecord, RequestStatus
from mlxd.protocol.errors import ControlError
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

BEGUN_MS = 1_700_000_000_000
GOOD = RequestRecord("r-1", BEGUN_MS, "messages", "local", "big", "a", http_status=200, completion_tokens=12)
GOOD_ROW = {"id": 1, **GOOD.describe(), "ttft_ms": 40, "duration_ms": 1500, "tokens_per_s": 7.5}
BAD = RequestRecord("r-2", BEGUN_MS, "messages", "cloud", target="p/b", status=RequestStatus.ERROR, code='x, "y"')
BAD_ROW = {"id": 2, **BAD.describe(), "attempts": [{"target": "p/b", "status": 500, "code": "x", "ms": 3}]}
CHANGE = {
    "id": 1,
    **ChangeRecord(BEGUN_MS, "settings.set", "cli", 7, "pool.memory", "auto", "4GB", None, 501, 99).describe(),
}
PERCENTILES = {"p50": 40, "p95": 1500, "p99": 61_000}
STATS = {
    "requests": 120_000,
    "every": 3,
    "groups": [
        {
            "model": "a",
            "route": "local",
            "requests": 120_000,
            "ok": 119_990,
            "error": 7,
            "cancelled": 2,
            "timeout": 1,
            "prompt_tokens": 5,
            "cached_tokens": 2,
            "completion_tokens": 9,
            "cost_micro_usd": 1_230_000,
            "tokens_per_s": 7.25,
            "duration_ms": PERCENTILES,
            "ttft_ms": dict.fromkeys(PERCENTILES),
        }
    ],
    "log": {"enabled": True, "problem": None, "queued": 0, "written": 5, "dropped": 2, "size_bytes": 10**6},
}


def page(frame: dict[str, Any]) -> dict[str, Any]:
    """Answer with one row a page."""
    if frame["p"].get("cursor") is None:
        return {"requests": [GOOD_ROW], "next": "5-2"}
    return {"requests": [BAD_ROW], "next": None}


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The zone is UTC, wherever the tests run."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def fake(own_home: None, utc: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """A daemon with two requests and a change in its log."""
    monkeypatch.setattr("time.time", lambda: BEGUN_MS / 1000)
    answers: dict[str, Any] = {
        "audit.list": page,
        "audit.changes": {"changes": [CHANGE], "next": None},
        "audit.stats": STATS,
    }
    with FakeControl(Home.from_environment().socket, answers) as control:
        yield control


def asked(fake: FakeControl) -> dict[str, Any]:
    """Return the params of the last request."""
    params: dict[str, Any] = fake.requests[-1]["p"]
    return {name: value for name, value in params.items() if value is not None}


def test_list(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each request; where the next page begins is a note."""
    assert main(["audit", "list", "-n", "1", "--model", "a", "--since", "1h"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "STARTED              REQUEST  MODEL  ROUTE  STATUS  CODE  TOKENS  TTFT  TOOK  TOK/S  KEY",
        "2023-11-14 22:13:20  r-1      a      local  ok      -         12  40ms  1.5s    7.5  -",
    ]
    assert shown.err == "there are more: --cursor 5-2\n"
    assert asked(fake) == {"model": "a", "since_ms": BEGUN_MS - 3_600_000, "limit": 1}


def test_show(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """All that is known of a request, a line each, with what noise rules have removed from its prompt."""
    removed = {"claude-billing-line": 1, "claude-tokens-left": 5}
    row = {
        **GOOD_ROW,
        "prompt_tokens": 20_383,
        "cached_tokens": 18_822,
        "noise_removed": removed,
        "ignored": ["tools[7]"],
    }
    fake.answers["audit.list"] = {"requests": [row, BAD_ROW], "next": None}
    assert main(["audit", "show", "r-1"]) == 0
    assert asked(fake) == {"request": "r-1"}
    good, bad = capsys.readouterr().out.split("\n\n")
    assert good.splitlines() == [
        "request:           r-1",
        "started:           2023-11-14 22:13:20",
        "endpoint:          messages",
        "model:             a",
        "asked for:         big",
        "route:             local",
        "status:            ok 200",
        "prompt tokens:     20383 (18822 cached)",
        "noise removed:     1 piece by claude-billing-line, 5 pieces by claude-tokens-left",
        "left out:          tools[7]",
        "answer tokens:     12",
        "first token after: 40ms",
        "took:              1.5s",
        "tokens a second:   7.5",
    ]
    assert "attempts: p/b x 3ms" in bad
    assert "noise" not in bad


def test_show_of_none(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A request without a row may run still."""
    fake.answers["audit.list"] = {"requests": [], "next": None}
    assert main(["audit", "show", "r-9"]) == 4
    assert capsys.readouterr().err.splitlines() == [
        "error: the log has no request 'r-9'; it gets its row when it ends",
        "  try: mlxctl request list",
        "  code: not_found",
    ]


def test_list_of_changes(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Who changed what, from what to what."""
    assert main(["audit", "list", "--changes"]) == 0
    (_, line) = capsys.readouterr().out.splitlines()
    assert line.split()[2:] == ["7", "cli", "settings.set", "pool.memory", "auto", "4GB", "501", "99"]


def test_list_as_json(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """One document with the rows as they are, and the cursor."""
    assert main(["audit", "list", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["requests"], document["next"]) == ([GOOD_ROW], "5-2")


def test_stats(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Sums and percentiles, with what was looked at and what was lost."""
    assert main(["audit", "stats", "--route", "local"]) == 0
    out = capsys.readouterr().out
    assert "requests: 120000, 1 in 3 looked at" in out
    assert "lost:     2 rows" in out
    cells = "a local 120000 7 2 1 40ms 1.5s 1m1s - - - 7.2 5 9 1.2300"
    assert out.splitlines()[-1].split() == cells.split()


def test_narrow_stats(fake: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At 80 columns there are fewer of them, and each line is one line."""
    monkeypatch.setenv("COLUMNS", "80")
    model = "smollm2-135m-instruct"
    fake.answers["audit.stats"] = STATS | {"groups": [{**STATS["groups"][0], "model": model}]}  # type: ignore[index]

    assert main(["audit", "stats"]) == 0
    heads, row = capsys.readouterr().out.splitlines()[-2:]
    assert row.startswith(f"{model}  ")
    assert max(len(heads), len(row)) <= 80


def test_export_as_lines(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """All pages, the oldest first, each row a document; what begins meanwhile is left out."""
    assert main(["audit", "export"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"schema": "mlxctl/v1", **row} for row in (GOOD_ROW, BAD_ROW)]
    assert asked(fake) == {"until_ms": BEGUN_MS + 1, "limit": 1000, "oldest_first": True, "cursor": "5-2"}


def test_export_as_csv(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """One head, and cells that any reader of CSV gives back."""
    assert main(["audit", "export", "--format", "csv"]) == 0
    first, second = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["request"], first["code"], first["tokens_per_s"]) == ("r-1", "", "7.5")
    assert (second["code"], json.loads(second["attempts"])) == ('x, "y"', BAD_ROW["attempts"])


def _events(*events: tuple[str, dict[str, Any]]) -> Any:
    def answer(frame: dict[str, Any]) -> list[dict[str, Any]]:
        number = frame["id"]
        told = {"sub": number, "seq": 0, "snapshot": {}}
        return [
            {"t": "res", "id": number, "ok": True, "r": told, "gen": 1},
            *(
                {"t": "evt", "sub": number, "seq": seq, "k": kind, "d": row}
                for seq, (kind, row) in enumerate(events, 1)
            ),
        ]

    return answer


def test_tail(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that fit, a line each, until there were enough."""
    bad = {name: value for name, value in BAD_ROW.items() if name != "id"}
    fake.answers["sub"] = _events(("audit.change", CHANGE), ("audit.request", GOOD_ROW), ("audit.request", bad))
    assert main(["audit", "tail", "-n", "1", "--status", "error"]) == 0
    assert capsys.readouterr().out == '2023-11-14 22:13:20  error x, "y"  - (p/b)  messages  0ms  r-2\n'
    assert main(["audit", "tail", "-n", "1", "--changes", "-q"]) == 0
    line = "2023-11-14 22:13:20  generation 7  settings.set by pid 99 of uid 501  pool.memory: auto -> 4GB\n"
    assert capsys.readouterr().out == line


def test_tail_of_a_log_that_is_off(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing would ever come, so it says so."""
    fake.answers["audit.stats"] = STATS | {"log": {**STATS["log"], "enabled": False}}  # type: ignore[dict-item]
    assert main(["audit", "tail"]) == 1
    assert "try: mlxctl config set audit.enabled=true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("list --status bad", "there are ok, error, cancelled, timeout"),
        ("stats --route moon", "there are local, cloud"),
        ("list --since yesterday", "'yesterday' is no time"),
        ("list --changes --model a", "--model is for requests"),
        ("export --format xml", "there are jsonl and csv"),
        ("tail --since 1h", "what ends from now on"),
    ],
)
def test_slips(fake: FakeControl, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    """What cannot be meant is refused with what can be, before anything is asked."""
    assert main(["audit", *line.split()]) == 2
    assert words in capsys.readouterr().err
    assert fake.requests == []


@pytest.mark.parametrize("verb", ["list", "stats", "export", "tail"])
def test_no_daemon(own_home: None, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """Every verb says that none runs."""
    assert main(["audit", verb]) == 3
    assert "mlxctl start" in capsys.readouterr().err


def test_moments(utc: None) -> None:
    """Durations are ago, dates are dates; a zone that is named counts."""
    assert parse_moment_ms("2h", 10_000) == 2_800_000
    assert parse_moment_ms("2023-11-14T22:13:20", 0) == BEGUN_MS
    assert parse_moment_ms("2023-11-14T23:13:20+01:00", 0) == BEGUN_MS
    assert parse_moment_ms("365000d", 10_000) == 0
    with pytest.raises(ControlError):
        parse_moment_ms("never", 0)
