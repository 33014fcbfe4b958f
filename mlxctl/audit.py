"""`mlxctl audit`: what became of requests, who changed what, and how long it took. The daemon reads the file for it."""

from __future__ import annotations

import math
import time
from typing import Annotated, Any

import typer

from mlxctl import output
from mlxctl.audit_filter import HELP, FilterVerb, read_filter
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
from mlxd.protocol.units import count

app = make_app("The request log: what became of requests, and who changed what.")

_TOPIC = ["audit"]
_SHOWN = 50
_PAGE_ROWS = 1000

Id = Annotated[str, typer.Argument(metavar="REQUEST", help="Request id, as `mlxctl audit list` shows it.")]
Changes = Annotated[bool, typer.Option("--changes", help="Changes of settings and models instead of requests.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, metavar="N", help="Most rows.")]
Cursor = Annotated[str | None, typer.Option("--cursor", metavar="CURSOR", help="Where the page before ended.")]
OldestFirst = Annotated[bool, typer.Option("--oldest-first", help="The oldest first instead of the newest.")]
Format = Annotated[str, typer.Option("--format", metavar="FORMAT", help="jsonl or csv.")]


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
        raise usage_error(f"there is no format {form!r}; there are jsonl and csv", HELP, "usage.format")
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
        raise usage_error("tail shows what ends from now on; --since and --until are for list and export", HELP)
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
