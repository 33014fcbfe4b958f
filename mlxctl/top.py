"""`mlxctl top`: what the daemon does, live. Its page is made from two answers to `status`, without a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from mlxctl.activity import OPERATION_COLUMNS, WAIT_COLUMNS, made_tokens, request_state
from mlxctl.call import Call
from mlxctl.output import Column, format_table, show_duration, show_size
from mlxctl.screen import Line, Style
from mlxctl.verb import Verb, make_app
from mlxctl.view import expiry, memory_bytes, note, running
from mlxctl.watch import Count, Interval, Pace, watch
from mlxd.protocol.units import count

app = make_app("What the daemon does, live.")

Map = Mapping[str, Any]

# What the memory consists of: its key, its sign in the bar, its name.
_PARTS = (
    ("weights_bytes", "#", "weights"),
    ("kv_bytes", "=", "KV"),
    ("prompt_cache_bytes", "+", "prompt caches"),
    ("grammar_bytes", "*", "grammars"),
    ("loading_bytes", "~", "loading"),
    ("margin_bytes", "-", "margin"),
)
_OTHER = "?"
_LABEL = 9  # columns of `memory   `
_WIDEST_BAR = 60


@app.command("top", cls=Verb)
def top(ctx: typer.Context, interval: Interval = "1s", count: Count = None) -> None:
    """Memory, models, requests with their speed and the queue, live.

    q quits. Where stdout is no terminal it prints one page after another; with --json a document a line, as
    `status` has it.
    """
    watch(Call.of(ctx), "status", render_top, Pace.parse(interval, count))


def render_top(document: Map, before: Map | None, columns: int, rows: int | None) -> list[Line]:
    """Return the page; *before* is the look before it, for what happens in between."""
    pool = document["pool"]
    head = [*_render_head(document, columns), Line("")]
    left = None if rows is None else rows - len(head)
    sections = [
        section
        for section in (
            _table(_MODEL_COLUMNS, pool["models"], columns, optional=("EXPIRES", "WAITING", "NOTE", "MEMORY")),
            _table(WAIT_COLUMNS, pool["queue"], columns, optional=("MODEL",)),
            _table(OPERATION_COLUMNS, document.get("operations", []), columns, optional=("KIND",)),
            _request_table(document, before, columns),
        )
        if section
    ]
    if not sections:
        sections = [[Line("no model is loaded and no request runs", Style.DIM)]]
    return [*head, *_stack(sections, left)]


def render_bar(memory: Map, columns: int) -> str:
    """Return the memory as a bar of *columns*; a bar that is longer than the limit has the limit's place as `|`."""
    reserved, limit = memory["reserved_bytes"], memory["limit_bytes"]
    scale = max(reserved, limit, 1)
    cells = [_sign_at((cell + 0.5) / columns * scale, memory) for cell in range(columns)]
    if reserved > limit:
        cells[min(columns - 1, limit * columns // scale)] = "|"
    return "".join(cells)


def _sign_at(place_bytes: float, memory: Map) -> str:
    end = 0
    for key, sign, _ in _PARTS:
        end += memory.get(key, 0)  # an older daemon has fewer parts
        if place_bytes < end:
            return sign
    return _OTHER if place_bytes < memory["reserved_bytes"] else "."


def _render_head(document: Map, columns: int) -> Iterator[Line]:
    pool, http = document["pool"], document["http"]
    memory = pool["memory"]
    up = show_duration(document["uptime_ms"] / 1000)
    where = http["url"] if http["url"] is not None else "not listening"
    yield Line(f"mlxd {document['version']}, up {up}, pid {document['pid']}, {where}", Style.HEAD)
    per_cent = 100 * memory["reserved_bytes"] // max(1, memory["limit_bytes"])
    tail = f"] {per_cent:3d} %"
    bar = render_bar(memory, max(1, min(_WIDEST_BAR, columns - _LABEL - 1 - len(tail))))
    is_over = pool.get("over_limit") is not None
    yield Line(f"{'memory':<{_LABEL}}[{bar}{tail}", Style.ALERT if is_over else Style.PLAIN)
    yield from _wrap(" " * _LABEL, _memory_words(memory), columns)
    yield from _wrap(f"{'work':<{_LABEL}}", _work_words(document), columns)
    for problem in document.get("problems", []):
        yield Line(f"problem: {problem}", Style.ALERT)


def _memory_words(memory: Map) -> Iterator[str]:
    yield f"{_short(memory['reserved_bytes'])} of {_short(memory['limit_bytes'])}"
    for key, sign, name in _PARTS:
        if memory.get(key):
            yield f"{sign} {name} {_short(memory[key])}"
    other_bytes = memory["reserved_bytes"] - sum(memory.get(key, 0) for key, _, _ in _PARTS)
    if other_bytes > 0:  # a part that a newer daemon has
        yield f"{_OTHER} other {_short(other_bytes)}"
    yield f". free {_short(memory['free_bytes'])}"


def _work_words(document: Map) -> Iterator[str]:
    tokens = document["pool"].get("tokens")
    if tokens is not None:
        yield f"{tokens['per_s']:.1f} tokens/s"
    requests = document.get("requests", [])
    answering = sum(request["state"] == "answering" for request in requests)
    yield f"{answering} of {count(len(requests), 'request')} answering"
    yield f"{document['pool'].get('waiting', len(document['pool']['queue']))} waiting"
    if tokens is not None:
        yield f"{tokens['completion']:,} tokens since the start"


_MODEL_COLUMNS: list[Column] = [
    ("MODEL", "id"),
    ("STATE", "state"),
    ("MEMORY", lambda model: _short(memory_bytes(model))),
    ("RUNNING", running),
    ("WAITING", "waiting"),
    ("TOKENS/S", "tokens_per_s"),
    ("EXPIRES", expiry),
    ("NOTE", note),
]


def _request_table(document: Map, before: Map | None, columns: int) -> list[Line]:
    """Return the requests that run and do not wait in the queue: those have rows of their own."""
    waiting = {wait["request_id"] for wait in document["pool"]["queue"]}
    earlier = {request["id"]: request for request in (before or {}).get("requests", [])}
    passed_s = 0.0 if before is None else (document["uptime_ms"] - before["uptime_ms"]) / 1000
    now_ms = document["started_at_ms"] + document["uptime_ms"]

    def speed(request: Map) -> str | None:
        tokens, known = made_tokens(request), earlier.get(request["id"], {}).get("completion_tokens")
        is_measured = tokens is not None and known is not None and passed_s > 0 and tokens >= known
        return f"{(tokens - known) / passed_s:.1f}" if is_measured else None

    return _table(
        [
            ("REQUEST", "id"),
            ("MODEL", "model"),
            ("ROUTE", "route"),
            ("STATE", lambda request: request_state(request, waiting)),
            ("TOKENS", made_tokens),
            ("TOKENS/S", speed),
            ("AGE", lambda request: show_duration(max(0, now_ms - request["started_at_ms"]) // 1000)),
        ],
        [request for request in document.get("requests", []) if request["id"] not in waiting],
        columns,
        optional=("ROUTE", "TOKENS", "STATE", "MODEL"),
    )


def _table(heads: Sequence[Column], rows: Sequence[Map], columns: int, *, optional: Sequence[str]) -> list[Line]:
    """Return the rows as lines under their heads; nothing when there is no row."""
    if not rows:
        return []
    first, *lines = format_table(heads, rows, width=columns, optional=optional).split("\n")
    return [Line(first, Style.HEAD), *map(Line, lines)]


def _stack(sections: list[list[Line]], rows: int | None) -> Iterator[Line]:
    """Yield the sections under each other, each with its share of the *rows*; what is left out is counted."""
    if rows is not None:
        rows -= len(sections) - 1
    for place, section in enumerate(sections):
        if place:
            yield Line("")
        if rows is None:
            yield from section
            continue
        share = max(2, rows // (len(sections) - place))
        if len(section) > share:
            hidden = len(section) - share + 1
            section = [*section[: share - 1], Line(f"... {hidden} more", Style.DIM)]  # noqa: PLW2901
        rows -= len(section)
        yield from section


def _wrap(label: str, words: Iterator[str], columns: int) -> Iterator[Line]:
    """Yield the words with commas between them, in as many lines as they need, under each other."""
    text = ", ".join(word.replace(" ", "\xa0") for word in words)  # no line ends in a word
    indent = " " * len(label)
    for line in textwrap.wrap(text, columns, initial_indent=label, subsequent_indent=indent, break_long_words=False):
        yield Line(line.replace("\xa0", " "))


def _short(n_bytes: int) -> str:
    """Return a size in one unit: the page is narrow, and the limit was echoed in both when it was set."""
    return str(show_size(n_bytes)).partition(" (")[0]
