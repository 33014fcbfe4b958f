"""The `systemctl --user` command lines for one unit, and what their answers mean.

Knows no unit file and no terminal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mlxctl.supervisor import Completed, Job, Runner
from mlxd.protocol.errors import EXIT_UNREACHABLE, ControlError

_PROPERTIES = ("LoadState", "ActiveState", "SubState", "MainPID", "Result", "ExecMainCode", "ExecMainStatus")
_NOT_THERE = 127
# What systemctl writes when no manager of this user can be asked.
_NO_BUS_SIGNS = ("Failed to connect to bus", "Failed to connect to user scope bus", "Failed to get D-Bus connection")
# ExecMainCode is the siginfo code of the end.
_EXITED, _KILLED, _DUMPED = "1", "2", "3"


def parse_show(text: str) -> Job | None:
    """Read the output of `systemctl show`: None for a unit that is not loaded."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if values.get("LoadState") in (None, "", "not-found"):
        return None
    pid = values.get("MainPID", "0")
    state = values.get("ActiveState")
    sub = values.get("SubState")
    return Job(
        "the user manager",
        f"{state} ({sub})" if state and sub else state,
        int(pid) if pid.isdecimal() and int(pid) > 0 else None,
        _describe_exit(values),
    )


def _describe_exit(values: dict[str, str]) -> str | None:
    status = values.get("ExecMainStatus", "")
    match values.get("ExecMainCode"):
        case code if code == _EXITED:
            text = f"exit status {status}"
        case code if code in (_KILLED, _DUMPED):
            text = f"signal {status}"
        case _:
            return None
    result = values.get("Result", "success")
    return text if result in ("success", "exit-code", "signal") else f"{text} ({result})"


def find_runtime_folder() -> str | None:
    """Return this user's runtime folder, where the bus of the user manager is; `su` and cron leave it out."""
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        return given
    usual = Path(f"/run/user/{os.getuid()}")
    return str(usual) if usual.is_dir() else None


class Systemctl:
    """One unit of this user's systemd."""

    def __init__(self, unit: str, *, run: Runner) -> None:
        """Take the name of the *unit*."""
        self._unit = unit
        self._run = run

    def find_job(self) -> Job | None:
        """Return what systemd knows of the unit; None when it is not loaded.

        Raises:
            ControlError: there is no systemd to ask.
        """
        shown = self._call("show", self._unit, f"--property={','.join(_PROPERTIES)}")
        self._check(shown, "ask for")
        return parse_show(shown.stdout)

    def reload(self) -> None:
        """Let systemd read the unit files anew."""
        self._check(self._call("daemon-reload"), "read")

    def enable(self) -> None:
        """Have the unit started at each login."""
        self._check(self._call("enable", "--quiet", self._unit), "enable")

    def disable(self) -> None:
        """Have it started no more."""
        self._check(self._call("disable", "--quiet", self._unit), "disable")

    def start(self) -> None:
        """Start the unit; nothing happens when it runs. Earlier failures do not count."""
        self._call("reset-failed", self._unit)  # refused when there was no failure
        self._check(self._call("start", self._unit), "start")

    def stop(self) -> None:
        """End its process by SIGTERM and wait, SIGKILL after TimeoutStopSec."""
        self._check(self._call("stop", self._unit), "stop")

    def restart(self) -> None:
        """Stop and start it."""
        self._check(self._call("restart", self._unit), "restart")

    def is_lingering(self) -> bool | None:
        """Tell whether this user's services outlive the last logout; None when that cannot be found out."""
        shown = self._run(["loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value"])
        return {"yes": True, "no": False}.get(shown.stdout.strip()) if shown.status == 0 else None

    def _call(self, *arguments: str) -> Completed:
        return self._run([*_environment(), "systemctl", "--user", *arguments])

    def _check(self, done: Completed, verb: str) -> None:
        if done.status == 0:
            return
        said = (done.stderr or done.stdout).strip()
        if done.status == _NOT_THERE:
            raise ControlError(
                "there is no systemd on this machine: systemctl was not found",
                hint="mlxctl start, which runs mlxd in the background without it",
                code="service.unsupported",
            )
        if any(sign in said for sign in _NO_BUS_SIGNS):
            raise ControlError(
                "this session has no systemd of its user to talk to, as in a container, or after su and sudo\n"
                f"systemctl: {said.splitlines()[0]}",
                hint="log in as this user, by ssh or on the console, and repeat; or run mlxd, in the foreground",
                code="service.no_session",
                exit_code=EXIT_UNREACHABLE,
            )
        raise ControlError(
            f"could not {verb} the service (systemctl status {done.status}{': ' + said if said else ''})",
            hint=f"systemctl --user status {self._unit}",
            code="service.refused",
        )


def _environment() -> Sequence[str]:
    """Return what stands before systemctl so that it finds the bus."""
    folder = find_runtime_folder()
    if folder is None or os.environ.get("XDG_RUNTIME_DIR"):
        return ()
    return ("env", f"XDG_RUNTIME_DIR={folder}")
