"""`mlxctl status` and `mlxctl ps`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxctl.call import Call, Document
from mlxctl.verb import Verb, make_app, usage_error
from mlxctl.view import format_ps, format_status
from mlxd.protocol.errors import EXIT_OTHER

if TYPE_CHECKING:
    from mlxctl.screen import Line

app = make_app("What the daemon is doing.")

Watch = Annotated[bool, typer.Option("--watch", "-w", help="Look again and again, until q or Ctrl-C.")]
Interval = Annotated[str, typer.Option("--interval", metavar="DURATION", help="Time between two looks of --watch.")]
Check = Annotated[bool, typer.Option("--check", help="Print what is wrong, nothing else; exit 1 when something is.")]


@app.command("status", cls=Verb)
def status(ctx: typer.Context, watch: Watch = False, check: Check = False, interval: Interval = "1s") -> None:
    """Everything at a glance: memory, models, queue, settings, sockets.

    With --check, for scripts: exit 0 when the daemon serves and there is no problem, 1 when there is one or models of
    the preload list are still to come, 3 when no daemon runs.
    """
    call = Call.of(ctx)
    if watch and check:
        raise usage_error("--watch and --check exclude each other", "mlxctl status --help")
    if watch:
        _watch(call, "status", format_status, interval)
        return
    document = call.ask("status")
    if not check:
        call.show(document, format_status)
        return
    found = list(find_problems(document))
    call.show({"ok": not found, "problems": found}, lambda _: "\n".join(found))
    if found:
        raise typer.Exit(EXIT_OTHER)


@app.command("ps", cls=Verb)
def ps(ctx: typer.Context, watch: Watch = False, interval: Interval = "1s") -> None:
    """The loaded models, running requests and operations."""
    call = Call.of(ctx)
    if watch:
        _watch(call, "ps", format_ps, interval)
    else:
        call.show(call.ask("ps"), format_ps)


def find_problems(status: Document) -> Iterator[str]:
    """Yield what keeps the daemon from serving as it is set up to, and what somebody should look at."""
    yield from status["problems"]
    if status["http"]["url"] is None and status["http"]["problem"] is None:
        yield "the HTTP server is not listening yet"
    for preload in status["pool"]["preload"]:
        if preload["state"] == "loading":
            yield f"preload {preload['id']} is being loaded"


def _watch(call: Call, operation: str, render: Callable[[Any], str], interval: str) -> None:
    from mlxctl.screen import Line  # late: a status that is asked for once needs no terminal
    from mlxctl.watch import Pace, watch

    def render_page(document: Mapping[str, Any], _: object, columns: int, rows: int | None) -> list[Line]:  # noqa: ARG001
        return [Line(line) for line in render(document).split("\n")]

    watch(call, operation, render_page, Pace.parse(interval, None))
