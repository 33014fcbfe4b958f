"""The service as a systemd user unit: its file, and the `systemctl --user` command lines for it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mlxctl.supervisor import Completed, Job, Supervisor, launchd_folder
from mlxd.protocol.errors import EXIT_INVALID, EXIT_UNREACHABLE, ControlError
from mlxd.protocol.paths import Home

UNIT = "mlxd.service"

_HOME_VARIABLE = "MLXD_HOME="
_PROPERTIES = ("LoadState", "ActiveState", "SubState", "MainPID", "Result", "ExecMainCode", "ExecMainStatus")
_NOT_THERE = 127
# What systemctl writes when no manager of this user can be asked.
_NO_BUS_SIGNS = ("Failed to connect to bus", "Failed to connect to user scope bus", "Failed to get D-Bus connection")
# ExecMainCode is the siginfo code of the end: it exited, was killed, or dumped its core.
_ENDS = {"1": "exit status", "2": "signal", "3": "signal"}


def render(home: Home, python: str) -> bytes:
    """Return the unit for this *home*, run by the interpreter *python*.

    Raises:
        ControlError: a path has a character that a unit file has no way to write.
    """
    template = (launchd_folder() / UNIT).read_text()
    values = {
        "{python}": quote(python),
        "{log}": quote(str(home.log)),
        "{home}": quote(f"{_HOME_VARIABLE}{home.root}"),
    }
    return re.sub(r"\{\w+\}", lambda match: values[match[0]], template).encode(errors="surrogateescape")


def quote(text: str) -> str:
    """Return *text* as one word of a unit file: see QUOTING and SPECIFIERS in systemd.syntax(7) and systemd.unit(5)."""
    if any(character < " " or character == "\x7f" for character in text):
        raise ControlError(
            f"a service cannot be made for {text!r}: the path has a control character",
            hint="another MLXD_HOME",
            code="service.unusable_path",
            exit_code=EXIT_INVALID,
        )
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def unquote(line: str) -> str | None:
    """Return the first word of *line* as `quote` was given it; None when it is not written by `quote`."""
    match = re.match(r'"((?:[^"\\]|\\.)*)"', line)
    return None if match is None else re.sub(r"\\(.)", r"\1", match[1]).replace("%%", "%")


def parse_show(text: str) -> Job | None:
    """Read the output of `systemctl show`: None for a unit that is not loaded."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if values.get("LoadState") in (None, "", "not-found"):
        return None
    pid, state, sub = values.get("MainPID", "0"), values.get("ActiveState"), values.get("SubState")
    last_exit = None
    if end := _ENDS.get(values.get("ExecMainCode", "")):
        result = values.get("Result", "success")
        last_exit = f"{end} {values.get('ExecMainStatus', '')}"
        last_exit += "" if result in ("success", "exit-code", "signal") else f" ({result})"
    return Job(
        "the user manager",
        f"{state} ({sub})" if state and sub else state,
        int(pid) if pid.isdecimal() and int(pid) > 0 else None,
        last_exit,
    )


class UserUnit(Supervisor):
    """The one unit of this user's systemd."""

    name = "systemd"
    file_name = UNIT

    @property
    def early_log(self) -> str:
        """The command that shows the unit's part of the journal."""
        return f"journalctl --user --unit {UNIT}"

    def render(self) -> bytes:
        """Return the unit."""
        return render(self.home, self.python)

    def find_job(self) -> Job | None:
        """Return what systemd knows of the unit; None when it has none.

        Raises:
            ControlError: there is no systemd to ask.
        """
        return parse_show(self._call("ask for", "show", UNIT, f"--property={','.join(_PROPERTIES)}"))

    def installed_python(self) -> str | None:
        """Return the interpreter that the unit in place names, or None when there is none to read."""
        return self._read_word("ExecStart=:")

    @property
    def owns_home(self) -> bool:
        """Whether the unit in place is for this home, so that its daemon is systemd's to start."""
        return self._read_word("Environment=") == f"{_HOME_VARIABLE}{self.home.root}"

    def find_advice(self) -> str | None:
        """Say how to keep it running after a logout, unless it does or nobody can tell."""
        shown = self._run(["loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value"])
        if shown.status != 0 or shown.stdout.strip() != "no":
            return None
        return "it ends at your last logout and starts at the next login; to keep it: loginctl enable-linger"

    def _read_word(self, key: str) -> str | None:
        try:
            lines = self.file.read_text(errors="surrogateescape").splitlines()
        except OSError:
            return None
        return next((unquote(line.removeprefix(key)) for line in lines if line.startswith(key)), None)

    def _usual_folder(self) -> Path:
        given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        return (given if given.is_absolute() else Path.home() / ".config") / "systemd" / "user"

    def _load(self, job: Job | None, *, has_changed: bool, at_login: bool) -> None:
        if has_changed or job is None:
            self._reread()
        if at_login:
            self._call("enable", "enable", "--quiet", UNIT)
        if has_changed and job is not None and job.pid is not None:
            self._call("restart", "restart", UNIT)
            return
        self._run(_command("reset-failed", UNIT))  # earlier failures do not count; refused when there was none
        self._call("start", "start", UNIT)

    def _terminate(self, job: Job) -> None:  # noqa: ARG002  (a unit has one job)
        self._call("stop", "stop", UNIT)  # SIGKILL after TimeoutStopSec

    def _unload(self, job: Job) -> None:
        self._terminate(job)
        self._call("disable", "disable", "--quiet", UNIT)

    def _reread(self) -> None:
        self._call("read", "daemon-reload")

    def _call(self, verb: str, *arguments: str) -> str:
        """Run `systemctl --user` and return its output.

        Raises:
            ControlError: it could not *verb* the service.
        """
        done = self._run(_command(*arguments))
        if done.status == 0:
            return done.stdout
        raise _refused(done, verb)


def _refused(done: Completed, verb: str) -> ControlError:
    if done.status == _NOT_THERE:
        return ControlError(
            "there is no systemd on this machine: systemctl was not found",
            hint="mlxctl start, which runs mlxd in the background without it",
            code="service.unsupported",
        )
    if any(sign in done.said for sign in _NO_BUS_SIGNS):
        return ControlError(
            "this session has no systemd of its user to talk to, as in a container, or after su and sudo\n"
            f"systemctl: {done.said.splitlines()[0]}",
            hint="log in as this user, by ssh or on the console, and repeat; or run mlxd, in the foreground",
            code="service.no_session",
            exit_code=EXIT_UNREACHABLE,
        )
    said = f": {done.said}" if done.said else ""
    return ControlError(
        f"could not {verb} the service (systemctl status {done.status}{said})",
        hint=f"systemctl --user status {UNIT}",
        code="service.refused",
    )


def _command(*arguments: str) -> Sequence[str]:
    """Return the command line; it names the folder where the manager's bus is when `su` or cron left that out."""
    usual = Path(f"/run/user/{os.getuid()}")
    is_missing = not os.environ.get("XDG_RUNTIME_DIR") and usual.is_dir()
    environment = ("env", f"XDG_RUNTIME_DIR={usual}") if is_missing else ()
    return [*environment, "systemctl", "--user", *arguments]
