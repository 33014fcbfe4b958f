"""`mlxctl logs`: the end of the daemon's log, and what is added to it. Works with no daemon."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from mlxctl import output
from mlxctl.call import Call
from mlxctl.client import Client
from mlxctl.logfile import Follower, Record, parse_line, read_last
from mlxctl.verb import Verb, make_app
from mlxd.protocol.errors import EXIT_NOT_FOUND, ControlError

app = make_app("The daemon's log.")

Level = Literal["debug", "info", "warning", "error"]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added, until Ctrl-C.")]
Least = Annotated[Level, typer.Option("--level", metavar="LEVEL", help="Least severe: debug, info, warning or error.")]
Number = Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many of the last entries; 0 none.")]

_POLL_S = 0.2
# Whether a daemon writes this file is worth a note and no wait: logs are read when it hangs, too.
_ASK_TIMEOUT_S = 1.0


@app.command("logs", cls=Verb)
def logs(ctx: typer.Context, follow: Follow = False, level: Least = "debug", lines: Number = 50) -> None:
    """The last entries of the daemon's log, and what is added to it.

    A traceback is part of its entry; times are UTC. Reads MLXD_HOME/logs/mlxd.log, and what was rotated away if
    that is needed. With --json it prints a JSON
    document a line.
    """
    call = Call.of(ctx)
    path = call.home.log
    _note_other_log(call, path)
    try:
        with Follower(path) as follower:
            for record in read_last(path, lines, level, follower.start):
                _print(call, record)
            if follow:
                _follow(call, follower, level)
    except FileNotFoundError:
        raise ControlError(
            f"there is no log: {path} does not exist; a daemon that runs in the foreground logs on its stderr",
            exit_code=EXIT_NOT_FOUND,
            code="logs.none",
            hint="mlxctl start, whose daemon logs there",
        ) from None


def _follow(call: Call, follower: Follower, level: str, sleep: Callable[[float], None] = time.sleep) -> None:
    last = Record("")
    while True:
        for line in follower.read_lines():
            record = parse_line(line)
            last = Record(line, last.level, last.time, line) if record is None else record
            if last.is_at_least(level):
                _print(call, last)
        sleep(_POLL_S)


def _print(call: Call, record: Record) -> None:
    if call.options.json:
        output.print_json_line({"time": record.time, "level": record.level, "message": record.message})
    else:
        output.print_text(record.text)


def _note_other_log(call: Call, path: Path) -> None:
    """Say so when the daemon that runs does not write to *path*."""
    try:
        with Client(call.socket, min(_ASK_TIMEOUT_S, call.options.timeout_s)) as daemon:
            shown = daemon.request("daemon.show").result
    except ControlError:
        return
    if shown["log"] is None:
        call.note(
            f"note: the daemon that runs (pid {shown['pid']}) logs on its stderr; what follows is of earlier ones"
        )
    elif Path(shown["log"]) != path:
        call.note(f"note: the daemon that runs (pid {shown['pid']}) logs to {shown['log']}")
