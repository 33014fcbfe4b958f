"""`mlxctl request`, `queue` and `op`: what the daemon does now, and what goes on after the command that began it."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxctl.activity import (
    format_listed_requests,
    format_operation,
    format_operations,
    format_queue,
    format_shown_requests,
)
from mlxctl.call import Call
from mlxctl.noun import add_verbs
from mlxctl.verb import DEFAULT_WAIT_S, Verb, make_app, read_duration
from mlxctl.wait import wait_for
from mlxd.protocol.units import count

app = make_app("What the daemon does now.")
request = make_app("Requests that are being answered.")
queue = make_app("Requests that wait for a place.")
op = make_app("Operations: what goes on after the command that began it.")

Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="Most requests to list, oldest first; 500 if left out."),
]
Op = Annotated[str, typer.Argument(metavar="OP", help="Operation id, as `mlxctl op list` shows it.")]
Running = Annotated[bool, typer.Option("--running", help="Only those that have not ended.")]
For = Annotated[
    float | None,
    typer.Option(
        "--for",
        parser=read_duration,
        metavar="DURATION",
        help=f"Longest wait; {DEFAULT_WAIT_S / 60:g}m when left out.",
    ),
]


@queue.command("show", cls=Verb)
def show_queue(ctx: typer.Context, limit: Limit = None) -> None:
    """Every request that has not started: its place, how long it has waited, and for what."""
    call = Call.of(ctx)
    call.show(call.ask("queue.show", limit=limit), format_queue)


@op.command("list", cls=Verb)
def list_operations(ctx: typer.Context, running: Running = False) -> None:
    """Those that run, and the last that ended."""
    call = Call.of(ctx)
    document = call.ask_all("op.list", "operations")
    if running:
        document["operations"] = [shown for shown in document["operations"] if shown["state"] == "running"]
    call.show(document, format_operations)


@op.command("wait", cls=Verb)
def wait(ctx: typer.Context, op: Op, longest_s: For = None) -> None:
    """Wait for its end, and exit as it does; Ctrl-C leaves it alone."""
    call = Call.of(ctx)
    with call.connect() as client:
        wait_s = DEFAULT_WAIT_S if longest_s is None else longest_s
        call.show(wait_for(call, client, {"op": op}, wait_s), format_operation)


add_verbs(
    request,
    "request",
    {
        "request.list": format_listed_requests,
        "request.show": format_shown_requests,
        "request.cancel": lambda document: f"cancelled {count(document['cancelled'], 'request')}",
    },
)
add_verbs(op, "op", {"op.show": format_operation, "op.cancel": format_operation})
for _name, _noun in {"request": request, "queue": queue, "op": op}.items():
    app.add_typer(_noun, name=_name)
