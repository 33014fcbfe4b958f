"""`mlxctl start`, `stop`, `restart` and `version`."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Annotated

import typer

from mlxctl import process
from mlxctl.call import Call, Document
from mlxctl.client import Client
from mlxctl.lock import Unreachable, find_holder
from mlxctl.verb import Verb, make_app
from mlxd import __version__
from mlxd.protocol.errors import EXIT_CONFLICT, ControlError
from mlxd.protocol.units import count

if TYPE_CHECKING:
    from mlxctl.supervisor import Supervisor

app = make_app("The daemon's process.")

Now = Annotated[bool, typer.Option("--now", help="Cancel running requests instead of waiting for their end.")]


@app.command("start", cls=Verb)
def start(ctx: typer.Context) -> None:
    """Start the daemon in the background and wait until it answers; nothing happens when one runs."""
    call = Call.of(ctx)
    running = process.find_daemon(call.socket, call.options.timeout_s)
    if running is None:
        running = process.await_holder(call.home, call.socket, process.START_TIMEOUT_S)
    if running is not None:
        with running:
            if not _is_ending(call, running):
                _show_running(call, running, "already running")
                return
    with begin(call) as daemon:
        _show_running(call, daemon, "started")


@app.command("stop", cls=Verb)
def stop(ctx: typer.Context, now: Now = False) -> None:
    """End the daemon once running requests have ended, and wait until it is gone."""
    call = Call.of(ctx)
    pid = end(call, now=now)
    document = {"was_running": pid is not None, "pid": pid}
    call.show(document, lambda _: "not running" if pid is None else f"stopped (pid {pid})")


@app.command("restart", cls=Verb)
def restart(ctx: typer.Context, now: Now = False) -> None:
    """Stop the daemon, if one runs, and start the installed version.

    It is stopped as `stop` does it: running requests end first.
    """
    call = Call.of(ctx)
    end(call, now=now)
    with begin(call) as daemon:
        _show_running(call, daemon, "started")


@app.command("version", cls=Verb)
def version(ctx: typer.Context) -> None:
    """The installed version, and that of the running daemon."""
    call = Call.of(ctx)
    document: Document = {"installed": __version__, "running": None, "python": platform.python_version()}
    try:
        running = process.find_daemon(call.socket, call.options.timeout_s)
    except ControlError as error:
        call.note(f"note: {error.message}")
    else:
        if running is not None:
            with running:
                document["running"] = running.version
        else:
            found = call.find_unreachable()
            if found is not None:
                call.note(f"note: {found.error.message}")
    call.show(document, _format_version)


def _is_ending(call: Call, daemon: Client) -> bool:
    """Tell whether the daemon is shutting down; one that is has ended when this comes back.

    Raises:
        ControlError: running requests keep it.
    """
    status = daemon.request("status").result
    if not status.get("pool", {}).get("draining", False):
        return False
    requests = count(len(status["requests"]), "request")
    call.note(f"note: the daemon (pid {daemon.pid}) is shutting down: waiting for {requests} to end")
    if not process.wait_ended(daemon, call.home, process.STOP_TIMEOUT_S):
        raise ControlError(
            f"the daemon (pid {daemon.pid}) is still shutting down after {process.STOP_TIMEOUT_S:g} s",
            exit_code=EXIT_CONFLICT,
            code="daemon.ending",
            hint="mlxctl stop --now, then mlxctl start",
        )
    return True


def begin(call: Call) -> Client:
    """Start the daemon, through launchd or systemd when that owns it, and return a connection.

    Raises:
        ControlError: it does not come up.
    """
    agent = find_agent(call)
    timeout_s = max(process.START_TIMEOUT_S, call.options.timeout_s)
    if agent is None:
        return process.start_detached(call.home, call.socket, timeout_s)
    agent.start()
    return Client(call.socket, timeout_s)


def end(call: Call, *, now: bool) -> int | None:
    """Stop the daemon and return its pid; None when none ran. Nothing restarts one that ended in peace.

    Raises:
        ControlError: it does not end.
    """
    try:
        daemon = process.find_daemon(call.socket, call.options.timeout_s)
    except ControlError as error:
        holder = find_holder(call.home) if error.code == "control.silent" else None
        if holder is None or holder.pid is None:
            raise
        if not now:
            error.hint = f"mlxctl stop --now, which ends its process (pid {holder.pid})"
            raise
        return process.end_unreachable(call.home, Unreachable(holder.pid, error), now=True)
    if daemon is None:
        found = call.find_unreachable()
        if found is None:
            return None
        if found.error.code == "daemon.other_socket":
            raise found.error
        return process.end_unreachable(call.home, found, now=now)
    with daemon:
        process.stop(daemon, call.home, now=now)
        return daemon.pid


def find_agent(call: Call) -> Supervisor | None:
    """Return the service that owns the daemon of this home; None where there is none."""
    if call.options.socket is not None:
        return None
    from mlxctl.supervisor import make_supervisor

    agent = make_supervisor(call.home, call.options.timeout_s)
    return agent if agent.owns_home else None


def _show_running(call: Call, daemon: Client, what: str) -> None:
    """Print that it runs and where, and note what keeps it from serving."""
    address = process.find_address(daemon)
    problems = daemon.request("status").result["problems"]
    document = {
        "result": what,
        "pid": daemon.pid,
        "version": daemon.version,
        "http": address.url,
        "problems": problems,
    }
    where = "" if address.url is None else f": {address.url}/v1"
    call.show(document, lambda _: f"{what} (pid {daemon.pid}){where}")
    for problem in [] if call.options.json else problems:
        call.note(f"warning: {problem}")


def _format_version(document: Document) -> str:
    running = document["running"]
    if running is None:
        return f"mlxd {document['installed']} installed, not running"
    if running == document["installed"]:
        return f"mlxd {running} installed and running"
    return f"mlxd {document['installed']} installed, {running} running: mlxctl restart"
