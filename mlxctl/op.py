"""`mlxctl op`: what goes on after the command that began it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from mlxctl.call import Call, Document
from mlxctl.output import format_pairs, format_table, show_duration
from mlxctl.verb import DEFAULT_WAIT_S, Verb, make_app, read_duration
from mlxctl.wait import wait_for

app = make_app("Operations: what goes on after the command that began it.")

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


@app.command("list", cls=Verb)
def list_operations(ctx: typer.Context, running: Running = False) -> None:
    """Those that run, and the last that ended."""
    call = Call.of(ctx)
    document = call.ask_all("op.list", "operations")
    if running:
        document["operations"] = [shown for shown in document["operations"] if shown["state"] == "running"]
    call.show(document, _format_list)


@app.command("show", cls=Verb)
def show(ctx: typer.Context, op: Op) -> None:
    """One operation: how far it is, or how it ended."""
    call = Call.of(ctx)
    call.show(call.ask("op.show", op=op), _format)


@app.command("wait", cls=Verb)
def wait(ctx: typer.Context, op: Op, longest_s: For = None) -> None:
    """Wait for its end, and exit as it does; Ctrl-C leaves it alone."""
    call = Call.of(ctx)
    with call.connect() as client:
        wait_s = DEFAULT_WAIT_S if longest_s is None else longest_s
        call.show(wait_for(call, client, {"op": op}, wait_s), _format)


@app.command("cancel", cls=Verb)
def cancel(ctx: typer.Context, op: Op) -> None:
    """Give it up; a load or unload that has begun comes to its end."""
    call = Call.of(ctx)
    call.show(call.change("op.cancel", op=op), _format)


def _format_list(document: Document) -> str:
    operations = document["operations"]
    if not operations:
        return "no operation runs, and none has ended since the daemon started"
    now_s = time.time()
    return format_table(
        ["OPERATION", "KIND", "STATE", "PHASE", "MODELS", "BEGAN", "ERROR"],
        [
            (
                shown["op"],
                shown["kind"],
                shown["state"],
                _format_phase(shown),
                ", ".join(shown["models"]) or None,
                f"{show_duration(max(0.0, now_s - shown['started_at_ms'] / 1000))} ago",
                None if shown.get("error") is None else shown["error"]["msg"],
            )
            for shown in operations
        ],
        optional=("ERROR", "KIND"),
        names=("OPERATION", "MODELS"),
    )


def _format(document: Document) -> str:
    ended_ms = document.get("ended_at_ms")
    end_s = time.time() if ended_ms is None else ended_ms / 1000
    error = document.get("error")
    return format_pairs(
        [
            ("operation", document["op"]),
            ("kind", document["kind"]),
            ("models", ", ".join(document["models"]) or None),
            ("state", document["state"]),
            ("phase", _format_phase(document)),
            ("took" if ended_ms is not None else "runs for", show_duration(end_s - document["started_at_ms"] / 1000)),
            ("error", None if error is None else error["msg"]),
            *(("try", way) for way in (() if error is None else error.get("hint", "").splitlines())),
        ]
    )


def _format_phase(shown: Document) -> str | None:
    if shown["state"] != "running":
        return None
    percent = f" ({100 * shown['done'] // shown['total']} %)" if shown.get("total") else ""
    return f"{shown['phase']}{percent}"
