"""`mlxctl status` and `mlxctl ps`."""

from __future__ import annotations

import typer

from mlxctl.call import Call
from mlxctl.verb import Verb, make_app
from mlxctl.view import format_ps, format_status

app = make_app("What the daemon is doing.")


@app.command("status", cls=Verb)
def status(ctx: typer.Context) -> None:
    """Everything at a glance: memory, models, queue, settings, sockets."""
    call = Call.of(ctx)
    call.show(call.ask("status"), format_status)


@app.command("ps", cls=Verb)
def ps(ctx: typer.Context) -> None:
    """The loaded models, running requests and operations."""
    call = Call.of(ctx)
    call.show(call.ask("ps"), format_ps)
