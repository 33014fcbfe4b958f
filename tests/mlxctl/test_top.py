"""The page of `top`: golden texts, narrow pages, low pages, the memory bar."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxctl.screen import Style
from mlxctl.top import render_bar, render_top
from tests.support.status_document import GB, MEMORY, model_document, status_document

BUSY = model_document(
    id="busy", running=2, paused=1, waiting=3, leases=3, pinned=True, expires_in_s=None, tokens_per_s=41.26
)
WAIT = {"request_id": "req-9", "model": "coming", "waited_s": 75.0, "reason": "coming is loading: 25 %"}
OPERATION = {"op": "op-3", "kind": "model.load", "phase": "load_started coming", "done": 1, "total": 4}


def request(name: str, **more: Any) -> dict[str, Any]:
    """Return a request that has run for a minute."""
    shown = {"id": name, "endpoint": "/v1/chat/completions", "model": "busy", "route": "local", "state": "answering"}
    return {**shown, "started_at_ms": 1_000_000 + 7_324_000, "completion_tokens": 100, **more}


DOCUMENT = status_document(
    models=[model_document(), BUSY],
    queue=[WAIT],
    operations=[OPERATION],
    tokens_per_s=41.26,
    requests=[
        request("req-1", completion_tokens=1234),
        request("req-2", route="cloud"),
        request("req-9", state="waiting"),
    ],
    problems=["port 6593 is taken; mlxctl config set http.port 6594"],
)
BEFORE = status_document(uptime_ms=7_382_000, requests=[request("req-1", completion_tokens=1134)])
PAGE = [
    "mlxd 0.1.0, up 2h3m, pid 4711, http://127.0.0.1:6593",
    "memory   [########################################==+*-...............]  75 %",
    "         18.0 GB of 24.0 GB, # weights 16.0 GB, = KV 1.0 GB,",
    "         + prompt caches 400.0 MB, * grammars 100.0 MB, - margin 500.0 MB,",
    "         . free 6.0 GB",
    "work     41.3 tokens/s, 2 of 3 requests answering, 1 waiting,",
    "         12,345 tokens since the start",
    "problem: port 6593 is taken; mlxctl config set http.port 6594",
    "",
    "MODEL    STATE   MEMORY  RUNNING  WAITING  TOKENS/S  EXPIRES  NOTE",
    "org/big  ready  17.0 GB        0        0       0.0  in 25m   -",
    "busy     ready  17.0 GB        3        3      41.3  -        1 sequence pau...",
    "",
    "WAITING  MODEL     FOR  REASON",
    "req-9    coming  1m15s  coming is loading: 25 %",
    "",
    "OPERATION  KIND        PHASE                DONE",
    "op-3       model.load  load_started coming  25 %",
    "",
    "REQUEST  MODEL  ROUTE  STATE      TOKENS  TOKENS/S  AGE",
    "req-1    busy   local  answering    1234      50.0   1m",
    "req-2    busy   cloud  answering       -         -   1m",
]
NARROW = [
    "mlxd 0.1.0, up 2h3m, pid 4711, http://127.0.0.1:6593",
    "memory   [#################=-......]  75 %",
    "         18.0 GB of 24.0 GB,",
    "         # weights 16.0 GB, = KV 1.0 GB,",
    "         + prompt caches 400.0 MB,",
    "         * grammars 100.0 MB,",
    "         - margin 500.0 MB, . free 6.0 GB",
    "work     0.0 tokens/s,",
    "         0 of 0 requests answering,",
    "         0 waiting,",
    "         12,345 tokens since the start",
    "",
    "MODEL             STATE  RUNNING  TOKENS/S",
    "org/a-name-th...  ready        0       0.0",
]


def texts(*arguments: Any) -> list[str]:
    """Return the page's lines."""
    return [line.text for line in render_top(*arguments)]


def test_golden_page() -> None:
    """Memory as a bar whose signs are explained, the speed, problems, models, waits, operations, requests."""
    assert texts(DOCUMENT, BEFORE, 79, None) == PAGE


def test_first_page_knows_no_speed_of_requests() -> None:
    """Speed is what happened between two looks; before the second there is none, and a restart makes none up."""
    restarted = status_document(uptime_ms=8_000_000, requests=[request("req-1", completion_tokens=5000)])
    for before in (None, restarted):
        line = next(text for text in texts(DOCUMENT, before, 79, None) if text.startswith("req-1"))
        assert line.split()[-3:] == ["1234", "-", "1m"]


def test_narrow_page() -> None:
    """On a narrow terminal texts wrap, columns that matter least go, and names are cut."""
    model = model_document(id="org/a-name-that-is-long")
    lines = texts(status_document(models=[model]), None, 42, None)
    assert lines == NARROW


def test_low_page() -> None:
    """Where the rows do not suffice, each part has its share and says how much it leaves out."""
    document = {**DOCUMENT, "requests": [request(f"req-{number}") for number in range(20, 60)], "problems": []}
    lines = texts(document, BEFORE, 79, 24)
    assert len(lines) == 24
    assert lines[-1] == "... 36 more"
    assert any(line.startswith("busy") for line in lines)


def test_quiet_page() -> None:
    """Where nothing is loaded and nothing runs, that is said."""
    assert texts(status_document(models=[]), None, 79, None)[-1] == "no model is loaded and no request runs"


def test_over_the_limit() -> None:
    """More than the limit: the bar is that of what is reserved, with the limit's place, the words say why."""
    document = status_document(
        memory={"limit_bytes": 12 * GB, "free_bytes": 0},
        over_limit="draining busy (2 requests, 31 s)",
        problems=["over the memory limit: draining busy (2 requests, 31 s)"],
    )
    lines = render_top(document, None, 79, None)
    assert lines[1].text == "memory   [########################################|############====+--] 150 %"
    assert lines[1].style is Style.ALERT
    assert any("over the memory limit" in line.text for line in lines)


def test_answer_of_an_older_daemon() -> None:
    """A daemon that counts no tokens is shown without them."""
    document = status_document(requests=[request("req-1")])
    del document["pool"]["tokens"]
    del document["pool"]["models"][0]["tokens_per_s"]
    del document["requests"][0]["completion_tokens"]
    lines = texts(document, None, 79, None)
    assert "work     1 of 1 request answering, 0 waiting" in lines
    assert lines[-1].split() == ["req-1", "busy", "local", "answering", "-", "-", "1m"]


def test_memory_of_a_newer_daemon() -> None:
    """A part of the memory that this version does not know is shown as such, not as free."""
    lines = texts(status_document(memory={"weights_bytes": 4 * GB}), None, 120, None)
    assert lines[1].count("?") == 30
    assert any("? other 12.0 GB" in line for line in lines[2:4])


def test_memory_of_an_older_daemon() -> None:
    """A part of the memory that an older daemon does not tell apart is left out."""
    document = status_document(memory={"prompt_cache_bytes": GB // 2})
    del document["pool"]["memory"]["grammar_bytes"]
    page = texts(document, None, 120, None)
    assert "grammars" not in "".join(page)
    assert "==++-" in page[1]


@settings(max_examples=50)
@given(
    parts=st.lists(st.integers(0, 10**12), min_size=6, max_size=6),
    limit=st.integers(0, 10**13),
    columns=st.integers(1, 200),
)
def test_bar_is_true(parts: list[int], limit: int, columns: int) -> None:
    """Of any memory and width, the bar has its width, and each sign the share that its part has, to a cell."""
    keys = ["weights_bytes", "kv_bytes", "prompt_cache_bytes", "grammar_bytes", "loading_bytes", "margin_bytes"]
    reserved = sum(parts)
    memory = {**dict(zip(keys, parts, strict=True)), "reserved_bytes": reserved, "limit_bytes": limit}
    bar = render_bar(memory, columns)
    assert len(bar) == columns
    scale = max(reserved, limit, 1)
    for sign, part in zip("#=+*~-", parts, strict=True):
        assert abs(bar.count(sign) - part / scale * columns) <= 1 + ("|" in bar)


@pytest.mark.parametrize("columns", [1, 5, 20, 200])
def test_no_width_breaks_it(columns: int) -> None:
    """A page of any width can be made."""
    assert render_top(DOCUMENT, BEFORE, columns, 5)
    assert len(render_bar(MEMORY, columns)) == columns
