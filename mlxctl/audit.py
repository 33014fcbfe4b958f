"""`mlxctl audit`: what became of requests, who changed what, and how long it took. The daemon reads the file for it."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperOption

from mlxctl import output
from mlxctl.audit_view import (
    format_change_line,
    format_changes,
    format_request,
    format_request_line,
    format_requests,
    format_stats,
)
from mlxctl.call import Call, Document
from mlxctl.verb import Verb, make_app, usage_error
from mlxd.protocol.errors import EXIT_NOT_FOUND, ControlError
from mlxd.protocol.event import Gap
from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.units import count, parse_duration_s

if TYPE_CHECKING:
    from typer._click import Context

app = make_app("The request log: what became of requests, and who changed what.")

_TOPIC = ["audit"]
_SHOWN = 50
_PAGE_ROWS = 1000

# option → placeholder and help; a placeholder may be the words that there are.
_OPTIONS = {
    **{
        name: (param.word or name.upper(), param.help)
        for name, param in OPERATIONS["audit.stats"].params.items()
        if name not in {"since_ms", "until_ms"}
    },
    "since": ("WHEN", "Begun in the last 2h, or since 2026-01-31T12:00."),
    "until": ("WHEN", "Begun before then."),
}
_HELP = "mlxctl audit --help"
_GIVEN = "mlxctl.audit.given"

Id = Annotated[str, typer.Argument(metavar="REQUEST", help="Request id, as `mlxctl audit list` shows it.")]
Changes = Annotated[bool, typer.Option("--changes", help="Changes of settings and models instead of requests.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, metavar="N", help="Most rows.")]
Cursor = Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Where the page before ended.")]
OldestFirst = Annotated[bool, typer.Option("--oldest-first", help="The oldest first instead of the newest.")]
Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="jsonl or csv.")]


class FilterVerb(Verb):
    """A verb with the options that choose rows; `read_filter` has what they say."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        """Add them to the verb's own."""
        super().__init__(name, **attributes)
        options = (
            TyperOption(param_decls=[f"--{name}"], metavar=placeholder, help=text)
            for name, (placeholder, text) in _OPTIONS.items()
        )
        self.params = [*options, *self.params]

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the line, and put them aside."""
        rest = super().parse_args(ctx, args)
        given = {name: ctx.params.pop(name, None) for name in _OPTIONS}
        ctx.meta[_GIVEN] = {name: value for name, value in given.items() if value is not None}
        return rest


@app.command("list", cls=FilterVerb)
def list_rows(
    ctx: typer.Context,
    changes: Changes = False,
    limit: Limit = _SHOWN,
    cursor: Cursor = None,
    oldest_first: OldestFirst = False,
) -> None:
    """Requests that have ended, the newest first; with --changes, who changed what."""
    call = Call.of(ctx)
    chosen = read_filter(ctx.meta, changes=changes)
    page = {"limit": limit, "cursor": cursor, "oldest_first": oldest_first or None}
    document = call.ask("audit.changes" if changes else "audit.list", **chosen, **page)
    call.show(document, format_changes if changes else format_requests)
    if document["next"] is not None and not call.options.json:
        call.note(f"there are more: --cursor {document['next']}")


@app.command("show", cls=Verb)
def show(ctx: typer.Context, request: Id) -> None:
    """All that the log has of one request; of each with this id, where a client has used it again."""
    call = Call.of(ctx)
    document = call.ask("audit.list", request=request)
    if not document["requests"]:
        raise ControlError(
            f"the log has no request {request!r}; it gets its row when it ends",
            exit_code=EXIT_NOT_FOUND,
            code="not_found",
            hint="mlxctl request list",
        )
    call.show(document, lambda shown: "\n\n".join(format_request(row) for row in shown["requests"]))


@app.command("stats", cls=FilterVerb)
def stats(
    ctx: typer.Context,
) -> None:
    """How requests ended, how long they took (p50, p95, p99) and what they used, per model and route.

    Counts are exact. Of more than 50000 requests, percentiles, speeds and tokens are those of every k-th; k is said,
    and --json has it as `every`.
    """
    call = Call.of(ctx)
    document = call.ask("audit.stats", **read_filter(ctx.meta))
    call.show(document, format_stats)


@app.command("export", cls=FilterVerb)
def export(
    ctx: typer.Context,
    changes: Changes = False,
    form: Format = "jsonl",
) -> None:
    """Write all rows to stdout, the oldest first: JSON lines or CSV. A page at a time, however many there are."""
    if form not in {"jsonl", "csv"}:
        raise usage_error(f"there is no format {form!r}; there are jsonl and csv", _HELP, "usage.format")
    call = Call.of(ctx)
    chosen = read_filter(ctx.meta, changes=changes)
    if chosen.get("until_ms") is None:
        chosen["until_ms"] = int(time.time() * 1000) + 1  # what begins while it is written is not waited for
    _export(call, "audit.changes" if changes else "audit.list", "changes" if changes else "requests", form, chosen)


@app.command("tail", cls=FilterVerb)
def tail(
    ctx: typer.Context,
    changes: Changes = False,
    most: Annotated[int | None, typer.Option("-n", min=1, metavar="N", help="End after N rows.")] = None,
) -> None:
    """Requests as they end, a line each, until Ctrl-C; with --changes, changes as they are made."""
    call = Call.of(ctx)
    chosen = read_filter(ctx.meta, changes=changes)
    if "since_ms" in chosen or "until_ms" in chosen:
        raise usage_error("tail shows what ends from now on; --since and --until are for list and export", _HELP)
    kind, form = ("audit.change", format_change_line) if changes else ("audit.request", format_request_line)
    with call.connect() as client:
        log = client.request("audit.stats", {"since_ms": 2**53}, is_question=True).result["log"]
        if not log["enabled"]:
            raise ControlError(
                "the request log is off", code="audit.disabled", hint="mlxctl config set audit.enabled=true"
            )
        subscription = client.subscribe(_TOPIC)
        call.note("requests as they end; Ctrl-C ends" if not changes else "changes as they are made; Ctrl-C ends")
        left = math.inf if most is None else most
        for item in subscription:
            if isinstance(item, Gap):
                call.note(f"{count(item.last - item.first + 1, 'row')} missed: they came faster than they were read")
            elif item.kind == kind and all(item.data.get(name) == value for name, value in chosen.items()):
                if call.options.json:
                    output.print_json_line(item.data)
                else:
                    output.print_text(form(item.data))
                left -= 1
                if left <= 0:
                    return


def _export(call: Call, operation: str, name: str, form: str, chosen: Document) -> None:
    import csv
    import sys

    rows = csv.writer(sys.stdout, lineterminator="\n") if form == "csv" else None
    has_head = False
    cursor: str | None = None
    with call.connect() as client:
        while True:
            params = {**chosen, "limit": _PAGE_ROWS, "oldest_first": True, "cursor": cursor}
            page = client.request(operation, params, is_question=True).result
            for row in page[name]:
                if rows is None:
                    output.print_json_line(row)
                    continue
                if not has_head:
                    rows.writerow(row)
                    has_head = True
                rows.writerow(_cell(value) for value in row.values())
            cursor = page["next"]
            if cursor is None:
                sys.stdout.flush()
                return


def _cell(value: Any) -> Any:
    import json

    return json.dumps(value) if isinstance(value, (list, dict, bool)) else value


def read_filter(meta: dict[str, Any], *, changes: bool = False) -> dict[str, Any]:
    """Return the params of the filters that were given.

    Raises:
        ControlError: a word is none of those that there are, or a filter of requests is given for changes.
    """
    given: dict[str, str] = meta[_GIVEN]
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name in {"since", "until"}:
            chosen[f"{name}_ms"] = parse_moment_ms(value, time.time())
            continue
        if changes:
            raise usage_error(f"--{name} is for requests; changes are chosen by --since and --until", _HELP)
        words = _OPTIONS[name][0].split("|")
        if len(words) > 1 and value not in words:
            raise usage_error(f"there is no {name} {value!r}; there are {', '.join(words)}", _HELP, f"usage.{name}")
        chosen[name] = value
    return chosen


def parse_moment_ms(text: str, now_s: float) -> int:
    """Return unix ms of `2h` (ago) or of an ISO date and time, in this machine's zone where it names none.

    Raises:
        ControlError: it is neither.
    """
    try:
        return max(0, int((now_s - parse_duration_s(text)) * 1000))
    except (ValueError, OverflowError):
        pass
    try:
        return max(0, int(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise usage_error(
            f"{text!r} is no time: 2h (ago), 2026-01-31 or 2026-01-31T12:00", _HELP, "usage.time"
        ) from None
