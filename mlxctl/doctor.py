"""`mlxctl doctor`: looks at everything around the daemon, and says what to do. Works with no daemon."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from mlxctl.call import Call
from mlxctl.client import Client
from mlxctl.connect import ABSENT
from mlxctl.doctor_daemon import Answers, check_daemon, check_environment
from mlxctl.doctor_home import check_home, check_settings_file, check_socket
from mlxctl.finding import Finding, fail, ok, warn
from mlxctl.supervisor import Runner, Supervisor, is_mac, make_supervisor, run
from mlxctl.verb import Verb, make_app
from mlxd.protocol.errors import EXIT_OTHER, ControlError
from mlxd.protocol.units import show_bytes

app = make_app("What is wrong, and what to do.")

_MIB = 2**20


@app.command("doctor", cls=Verb)
def doctor(ctx: typer.Context) -> None:
    """What is wrong around the daemon, and what to do about it.

    Tries files, sockets, settings, HTTP, providers (while the cloud is on), memory, models, limits and the service.
    Each check is ok, warn (works, but look at it) or fail. Exits 1 when one failed, and works with no daemon.
    """
    call = Call.of(ctx)
    findings = list(examine(call))
    counted = Counter(finding["verdict"] for finding in findings)
    sums = {verdict: counted[verdict] for verdict in ("ok", "warn", "fail")}
    call.show({"findings": findings, "sums": sums, "ok": not sums["fail"]}, lambda found: "\n".join(_format(found)))
    if sums["fail"]:
        raise typer.Exit(EXIT_OTHER)


def examine(call: Call) -> Iterator[Finding]:
    """Yield what is found, the daemon's own part in the middle."""
    yield from check_home(call.home)
    yield from check_socket(call.home, call.socket)
    limit_bytes = pid = None
    try:
        with Client(call.socket, call.options.timeout_s) as client:
            answers = Answers.ask(client)
    except ControlError as error:
        yield _describe_absence(call, error)
        yield from check_settings_file(call.home)
    else:
        yield from check_daemon(answers)
        yield from check_environment(answers.process, call.home, os.environ)
        limit_bytes, pid = answers.status["pool"]["memory"]["limit_bytes"], answers.status["pid"]
    yield from check_wired_limit(limit_bytes, run)
    yield from check_service(make_supervisor(call.home, call.options.timeout_s), pid, run)


def _describe_absence(call: Call, error: ControlError) -> Finding:
    """Say why no daemon could be asked."""
    if error.code in ABSENT:
        found = call.find_unreachable()
        if found is None:
            return warn("daemon", "no daemon is running", hint="mlxctl start")
        error = found.error
    what, *why = error.message.splitlines()
    return fail("daemon", what, "; ".join(why) or None, error.hint)


def check_wired_limit(limit_bytes: int | None, run: Runner) -> Iterator[Finding]:
    """Compare the memory limit with what macOS lets Metal keep wired, where somebody has set that."""
    if not is_mac():
        return
    done = run(["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"])
    if done.status != 0 or not done.stdout.strip().isdecimal():
        return
    wired_mb = int(done.stdout)
    what = f"iogpu.wired_limit_mb is {wired_mb} ({show_bytes(wired_mb * _MIB)})"
    if wired_mb == 0:
        yield ok("wired limit", "iogpu.wired_limit_mb is 0: macOS's own choice, about three quarters of the memory")
    elif limit_bytes is not None and limit_bytes > wired_mb * _MIB:
        what = f"{what}, the memory limit {show_bytes(limit_bytes)}"
        yield warn("wired limit", what, "what is over it is paged, and slow", f"mlxctl pool set-memory {wired_mb}MiB")
    else:
        yield ok("wired limit", what)


def check_service(agent: Supervisor, daemon_pid: int | None, run: Runner) -> Iterator[Finding]:
    """Look at the installed service, if there is one; *daemon_pid* is that of the daemon that answers.

    Its interpreter is run, by *run*: it may be there and no longer have mlxd.
    """
    if not agent.is_installed:
        yield ok("service", f"not installed with {agent.name}; mlxctl start runs it without")
    elif not agent.owns_home:
        yield warn(
            "service",
            f"{agent.file} is for another MLXD_HOME than this shell's {agent.home.root}",
            "what this shell's mlxctl steers is not what starts at login",
            "mlxctl service print, or mlxctl service install for this one",
        )
    else:
        yield from _check_interpreter(agent, run)
        yield from _check_job(agent, daemon_pid)


def _check_interpreter(agent: Supervisor, run: Runner) -> Iterator[Finding]:
    python = agent.installed_python()
    again, consequence = "mlxctl service install", "it cannot start"
    if python is None or not os.access(python, os.X_OK):
        yield warn("service", f"its interpreter is gone: {python}", consequence, again)
    elif (done := run([python, "-m", "mlxd", "--version"])).status != 0:
        said = (done.stderr.strip().splitlines() or [f"it ended with status {done.status}"])[-1]
        yield warn("service", f"its interpreter {python} cannot run mlxd: {said}", consequence, again)
    elif not agent.is_current:
        yield warn("service", f"{agent.file} was written by another version", hint=again)


def _check_job(agent: Supervisor, daemon_pid: int | None) -> Iterator[Finding]:
    try:
        job = agent.find_job()
    except ControlError as error:
        yield warn("service", error.message.splitlines()[0], hint=error.hint)
        return
    anew = "mlxctl stop, then mlxctl service start"
    answering = f"the daemon that answers (pid {daemon_pid})"
    if job is None:
        yield warn("service", f"installed, and not loaded into {agent.name}", hint="mlxctl service start")
    elif job.pid is None and daemon_pid is None:
        yield warn("service", f"loaded, and not running; last exit: {job.last_exit}", hint="mlxctl service start")
    elif job.pid is None:
        what = f"{answering} was not started by {agent.name}"
        yield warn("service", what, "it does not come back after a crash", anew)
    elif daemon_pid is not None and job.pid != daemon_pid:
        yield warn("service", f"{answering} is not the service's (pid {job.pid})", hint=anew)
    else:
        advice = agent.find_advice()
        yield ok("service", f"{agent.name} runs it, pid {job.pid}") if advice is None else warn("service", advice)


def _format(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the findings: a line each, what follows and what to do below it, the sum at the end."""
    findings, sums = document["findings"], document["sums"]
    width = max(len(finding["check"]) for finding in findings)
    for finding in findings:
        yield f"{finding['verdict']:<4}  {finding['check']:<{width}}  {finding['what']}"
        for name, word in (("why", ""), ("try", "try: ")):
            for line in finding.get(name, "").splitlines():
                yield f"{'':<4}  {'':<{width}}  {word}{line}"
    yield f"\n{len(findings)} checks: {sums['ok']} ok, {sums['warn']} to look at, {sums['fail']} failed"
