"""`mlxctl top`: what the daemon does, live."""

from __future__ import annotations

import typer

from mlxctl.call import Call
from mlxctl.dashboard import render_top
from mlxctl.verb import Verb, make_app
from mlxctl.watch import Count, Interval, Pace, watch

app = make_app("What the daemon does, live.")


@app.command("top", cls=Verb)
def top(ctx: typer.Context, interval: Interval = "1s", count: Count = None) -> None:
    """Memory, models, requests with their speed and the queue, live.

    q quits. Where stdout is no terminal it prints one page after another; with --json a document a line, as
    `status` has it.
    """
    watch(Call.of(ctx), "status", render_top, Pace.parse(interval, count))
