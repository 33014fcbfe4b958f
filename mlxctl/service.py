"""`mlxctl service`: mlxd under launchd or systemd, started at login and after a crash.

Owns the words; what `supervisor.py` chooses does the work.
"""

from __future__ import annotations

import os

import typer

from mlxctl.call import Call, Document
from mlxctl.output import format_pairs
from mlxctl.supervisor import Supervisor, make_supervisor
from mlxctl.verb import Verb, make_app, usage_error
from mlxd.protocol.errors import EXIT_UNREACHABLE

app = make_app("Run mlxd under launchd or systemd: from login on, and again after a crash.")


@app.command("install", cls=Verb)
def install(ctx: typer.Context) -> None:
    """Write the LaunchAgent or user unit and start the daemon; a repeat interrupts nothing that is current."""
    call = Call.of(ctx)
    agent = _make_agent(call)
    agent.install()
    _show(call, agent, f"installed: mlxd runs now and after each login, with {call.home.root}")
    advice = agent.find_advice()
    if advice is not None:
        call.note(f"note: {advice}")


@app.command("uninstall", cls=Verb)
def uninstall(ctx: typer.Context) -> None:
    """Stop the daemon and remove the service; settings and models stay."""
    call = Call.of(ctx)
    agent = _make_agent(call)
    was_there = agent.uninstall()
    _show(call, agent, f"removed; {call.home.root} stays" if was_there else "unchanged: it was not installed")


@app.command("start", cls=Verb)
def start(ctx: typer.Context) -> None:
    """Start the installed service and wait until it answers."""
    call = Call.of(ctx)
    agent = _make_agent(call)
    agent.start()
    _show(call, agent, "running")


@app.command("stop", cls=Verb)
def stop(ctx: typer.Context) -> None:
    """Let running requests end and stop the daemon until `service start` or the next login."""
    call = Call.of(ctx)
    agent = _make_agent(call)
    was_running = agent.stop()
    _show(
        call,
        agent,
        "stopped, until `mlxctl service start` or the next login" if was_running else "unchanged: not running",
    )


@app.command("restart", cls=Verb)
def restart(ctx: typer.Context) -> None:
    """Let running requests end and start the daemon again, as the installed version."""
    call = Call.of(ctx)
    agent = _make_agent(call)
    agent.restart()
    _show(call, agent, "running again")


@app.command("status", cls=Verb)
def status(ctx: typer.Context) -> None:
    """What launchd or systemd knows of it; exits 3 when it does not run."""
    call = Call.of(ctx)
    agent = _make_agent(call)
    document = _describe(agent)
    call.show(document, _format)
    if document["pid"] is None:
        raise typer.Exit(EXIT_UNREACHABLE)


@app.command("print", cls=Verb)
def print_file(ctx: typer.Context) -> None:
    """Print the LaunchAgent or user unit that `install` would write."""
    call = Call.of(ctx)
    agent = _make_agent(call)
    document = {"supervisor": agent.name, "file": str(agent.file), "content": agent.render().decode(errors="replace")}
    call.show(document, lambda shown: str(shown["content"]).rstrip())


def _make_agent(call: Call) -> Supervisor:
    if call.options.socket is not None:
        raise usage_error(
            "--socket has no meaning for the service, which is one per user and uses the socket in MLXD_HOME",
            "MLXD_HOME=PATH mlxctl service install",
        )
    return make_supervisor(call.home, call.options.timeout_s)


def _show(call: Call, agent: Supervisor, text: str) -> None:
    document = {"result": text, **_describe(agent)}
    call.show(document, lambda shown: str(shown["result"]))


def _describe(agent: Supervisor) -> Document:
    job = agent.find_job()
    python = agent.installed_python()
    return {
        "supervisor": agent.name,
        "installed": agent.is_installed,
        "loaded": job is not None,
        "pid": job.pid if job is not None else None,
        "state": job.state if job is not None else None,
        "last_exit": job.last_exit if job is not None else None,
        "domain": job.domain if job is not None else None,
        "file": str(agent.file),
        "python": python,
        "current": agent.is_current,
        "log": str(agent.home.log),
        "early_log": agent.early_log,
        "problem": _find_problem(agent, python),
    }


def _find_problem(agent: Supervisor, python: str | None) -> str | None:
    if not agent.is_installed:
        return "not installed: mlxctl service install"
    if python is None or not os.access(python, os.X_OK):
        return f"its interpreter is gone ({python}): mlxctl service install"
    if not agent.is_current:
        return "it was installed by another version or for another MLXD_HOME: mlxctl service install"
    return None


def _format(document: Document) -> str:
    running = "not running" if document["pid"] is None else f"running, pid {document['pid']}"
    return format_pairs(
        [
            ("service", running),
            (document["supervisor"], f"loaded in {document['domain']}" if document["loaded"] else "not loaded"),
            ("state", document["state"]),
            ("last exit", document["last_exit"]),
            ("file", document["file"] if document["installed"] else None),
            ("python", document["python"]),
            ("log", document["log"]),
            ("early log", document["early_log"]),
            ("problem", document["problem"]),
        ]
    )
