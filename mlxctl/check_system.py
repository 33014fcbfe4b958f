"""What `mlxctl doctor` looks at around the daemon: the service that starts it, and what Metal may keep wired."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mlxctl.finding import Finding, ok, warn
from mlxctl.supervisor import Runner, Supervisor, is_mac
from mlxd.protocol.errors import ControlError
from mlxd.protocol.units import show_bytes

_MIB = 2**20


def check_service(agent: Supervisor, daemon_pid: int | None, run: Runner) -> Iterator[Finding]:
    """Look at the installed service, if there is one; *daemon_pid* is that of the daemon that answers.

    Its interpreter is run, by *run*: it may be there and no longer have mlxd.
    """
    if not agent.is_installed:
        yield ok("service", f"not installed with {agent.name}; mlxctl start runs it without")
        return
    python = agent.installed_python()
    if not agent.owns_home:
        yield warn(
            "service",
            f"{agent.file} is for another MLXD_HOME than this shell's {agent.home.root}",
            why="what this shell's mlxctl steers is not what starts at login",
            hint="mlxctl service print, or mlxctl service install for this one",
        )
        return
    if python is None or not os.access(python, os.X_OK):
        yield warn(
            "service", f"its interpreter is gone: {python}", why="it cannot start", hint="mlxctl service install"
        )
    elif (done := run([python, "-m", "mlxd", "--version"])).status != 0:
        said = (done.stderr.strip().splitlines() or [f"it ended with status {done.status}"])[-1]
        yield warn(
            "service",
            f"its interpreter {python} cannot run mlxd: {said}",
            why="it cannot start",
            hint="mlxctl service install",
        )
    elif not agent.is_current:
        yield warn("service", f"{agent.file} was written by another version", hint="mlxctl service install")
    yield from _check_job(agent, daemon_pid)


def _check_job(agent: Supervisor, daemon_pid: int | None) -> Iterator[Finding]:
    try:
        job = agent.find_job()
    except ControlError as error:
        yield warn("service", error.message.splitlines()[0], hint=error.hint)
        return
    if job is None:
        yield warn("service", f"installed, and not loaded into {agent.name}", hint="mlxctl service start")
    elif job.pid is not None and daemon_pid is not None and job.pid != daemon_pid:
        yield warn(
            "service",
            f"the daemon that answers (pid {daemon_pid}) is not the service's (pid {job.pid})",
            hint="mlxctl stop, then mlxctl service start",
        )
    elif job.pid is None and daemon_pid is not None:
        yield warn(
            "service",
            f"the daemon that answers (pid {daemon_pid}) was not started by {agent.name}",
            why="it does not come back after a crash",
            hint="mlxctl stop, then mlxctl service start",
        )
    elif job.pid is None:
        yield warn("service", f"loaded, and not running; last exit: {job.last_exit}", hint="mlxctl service start")
    else:
        advice = agent.find_advice()
        yield ok("service", f"{agent.name} runs it, pid {job.pid}") if advice is None else warn("service", advice)


def check_wired_limit(limit_bytes: int | None, run: Runner) -> Iterator[Finding]:
    """Compare the memory limit with what macOS lets Metal keep wired, where somebody has set that."""
    wired_mb = read_wired_limit_mb(run)
    if wired_mb is None:
        return
    if wired_mb == 0:
        yield ok("wired limit", "iogpu.wired_limit_mb is 0: macOS's own choice, about three quarters of the memory")
    elif limit_bytes is not None and limit_bytes > wired_mb * _MIB:
        yield warn(
            "wired limit",
            f"iogpu.wired_limit_mb is {wired_mb} ({show_bytes(wired_mb * _MIB)}), the memory limit"
            f" {show_bytes(limit_bytes)}",
            why="what is over it is paged, and slow",
            hint=f"mlxctl pool set-memory {wired_mb}MiB",
        )
    else:
        yield ok("wired limit", f"iogpu.wired_limit_mb is {wired_mb} ({show_bytes(wired_mb * _MIB)})")


def read_wired_limit_mb(run: Runner) -> int | None:
    """Return what `sysctl` says of the GPU's wired memory; None where there is no such thing."""
    if not is_mac():
        return None
    done = run(["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"])
    text = done.stdout.strip()
    return int(text) if done.status == 0 and text.isdecimal() else None
