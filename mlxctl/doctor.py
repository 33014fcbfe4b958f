"""`mlxctl doctor`: looks at everything around the daemon, and says what to do. Works with no daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator

import typer

from mlxctl.call import Call
from mlxctl.check_daemon import Answers, check_absence, check_daemon, check_environment
from mlxctl.check_files import check_home, check_settings_file, check_socket
from mlxctl.check_system import check_service, check_wired_limit
from mlxctl.client import Client, is_running
from mlxctl.connect import ABSENT
from mlxctl.finding import Finding, format_findings, summarize
from mlxctl.lock import find_unreachable
from mlxctl.supervisor import make_supervisor, run
from mlxctl.verb import Verb, make_app
from mlxd.protocol.errors import EXIT_OTHER, ControlError

app = make_app("What is wrong, and what to do.")


@app.command("doctor", cls=Verb)
def doctor(ctx: typer.Context) -> None:
    """What is wrong around the daemon, and what to do about it.

    Tries files, sockets, settings, HTTP, providers (while the cloud is on), memory, models, limits and the service.
    Each check is ok, warn (works, but look at it) or fail. Exits 1 when one failed, and works with no daemon.
    """
    call = Call.of(ctx)
    findings = list(examine(call))
    sums = summarize(findings)
    document = {"findings": [finding.describe() for finding in findings], "sums": sums, "ok": sums["fail"] == 0}
    call.show(document, format_findings)
    if sums["fail"]:
        raise typer.Exit(EXIT_OTHER)


def examine(call: Call) -> Iterator[Finding]:
    """Yield what is found, the daemon's own part in the middle."""
    yield from check_home(call.home)
    yield from check_socket(call.home, call.socket)
    answers: Answers | None = None
    try:
        with Client(call.socket, call.options.timeout_s) as client:
            answers = Answers.ask(client)
    except ControlError as error:
        is_usual = call.options.socket is None
        found = find_unreachable(call.home, call.socket, is_usual_socket=is_usual) if error.code in ABSENT else None
        yield from check_absence(error if found is None else found.error)
        yield from check_settings_file(call.home)
    limit_bytes = pid = None
    if answers is not None:
        yield from check_daemon(answers)
        yield from check_environment(answers.process, call.home, os.environ)
        limit_bytes, pid = answers.status["pool"]["memory"]["limit_bytes"], answers.status["pid"]
    yield from check_wired_limit(limit_bytes, run)
    agent = make_supervisor(call.home, lambda path: is_running(path, call.options.timeout_s))
    yield from check_service(agent, pid, run)
