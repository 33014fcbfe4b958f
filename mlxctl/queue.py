"""`mlxctl queue`: who waits, for what, and how long already."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxctl.call import Call
from mlxctl.verb import Verb, make_app
from mlxctl.view import format_queue

app = make_app("Requests that wait for a place.")

Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="Most requests to list, oldest first; 500 if left out."),
]


@app.command("show", cls=Verb)
def show(ctx: typer.Context, limit: Limit = None) -> None:
    """Every request that has not started: its place, how long it has waited, and for what."""
    call = Call.of(ctx)
    call.show(call.ask("queue.show", limit=limit), format_queue)
