"""The service as a LaunchAgent: its plist, and the `launchctl` command lines for its label."""

from __future__ import annotations

import os
import plistlib
import re
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from mlxctl.supervisor import Completed, Job, Supervisor, launchd_folder
from mlxd.protocol.errors import ControlError
from mlxd.protocol.paths import Home

LABEL = "local.mlxd"

# bootout is asynchronous: the daemon may drain for 50 s, and launchd kills it at 60 s (ExitTimeOut).
_END_TIMEOUT_S = 65.0
_BOOTSTRAP_TRIES = 5
_BOOTSTRAP_PAUSE_S = 1.0
_NO_PROCESS, _IO_ERROR, _STOPPING, _UNDER_WAY, _NO_SERVICE = 3, 5, 36, 37, 113
# `launchctl error N` gives Apple's words for these.
_CAUSES = {
    _IO_ERROR: "launchd refused it: the label is still busy, or the plist is not usable",
    119: "the service is disabled (System Settings, Login Items)",
    125: "this login session has no such domain",
}


def render(home: Home, python: str) -> bytes:
    """Return the plist for this *home*, run by the interpreter *python*."""
    template = plistlib.loads((launchd_folder() / f"{LABEL}.plist").read_bytes())
    paths = {
        "{python}": python,
        "{home}": str(home.root),
        "{log}": str(home.log),
        "{early_log}": str(early_log_path(home)),
    }
    return plistlib.dumps(_fill(template, paths), sort_keys=False)


def early_log_path(home: Home) -> Path:
    """Return where launchd puts what the daemon says before it has its log, and why it could not start."""
    return home.logs / "launchd.log"


def _fill(value: Any, paths: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, paths) for item in value]
    # A whole string or nothing: a path with braces in it stays as it is.
    return paths.get(value, value) if isinstance(value, str) else value


def parse_print(text: str, domain: str) -> Job:
    """Read the output of `launchctl print`; only lines one level deep belong to the service itself."""

    def find(name: str) -> str | None:
        match = re.search(rf"^\t{name} = (.+)$", text, re.MULTILINE)
        return match[1].strip() if match else None

    pid = find("pid")
    return Job(domain, find("state"), int(pid) if pid and pid.isdecimal() else None, find("last exit code"))


class LaunchAgent(Supervisor):
    """The one label of this user's launchd."""

    name = "launchd"
    file_name = f"{LABEL}.plist"

    @property
    def early_log(self) -> str:
        """The file that launchd writes to."""
        return str(early_log_path(self.home))

    def render(self) -> bytes:
        """Return the plist."""
        return render(self.home, self.python)

    def find_job(self) -> Job | None:
        """Return the service, be it loaded in the console session or over ssh; None when it is not loaded."""
        for domain in (f"gui/{os.getuid()}", f"user/{os.getuid()}"):
            shown = self._call("print", f"{domain}/{LABEL}")
            if shown.status == 0:
                return parse_print(shown.stdout, domain)
        return None

    def installed_python(self) -> str | None:
        """Return the interpreter that the plist in place names, or None when there is none to read."""
        arguments = self._read_plist().get("ProgramArguments")
        return str(arguments[0]) if isinstance(arguments, list) and arguments else None

    @property
    def owns_home(self) -> bool:
        """Whether the plist in place is for this home, so that its daemon is launchd's to start."""
        variables = self._read_plist().get("EnvironmentVariables")
        return isinstance(variables, dict) and variables.get("MLXD_HOME") == str(self.home.root)

    def _read_plist(self) -> dict[str, Any]:
        try:
            document = plistlib.loads(self.file.read_bytes())
        except (OSError, plistlib.InvalidFileException, ExpatError):
            return {}
        return document if isinstance(document, dict) else {}

    def _usual_folder(self) -> Path:
        return Path.home() / "Library" / "LaunchAgents"

    def _load(self, job: Job | None, *, has_changed: bool, at_login: bool) -> None:  # noqa: ARG002  (it always does)
        if job is not None and not has_changed:
            _check(self._call("kickstart", f"{job.domain}/{LABEL}"), "start", _UNDER_WAY)
            return
        if job is not None:
            self._unload(job)
        self._bootstrap()

    def _bootstrap(self) -> None:
        # gui/ needs a console session and is what a login uses; user/ is what ssh without one has.
        has_console = self._call("print", f"gui/{os.getuid()}").status == 0
        domain = f"{'gui' if has_console else 'user'}/{os.getuid()}"
        self._call("enable", f"{domain}/{LABEL}")  # forgets an earlier `launchctl disable`
        for attempt in range(1, _BOOTSTRAP_TRIES + 1):
            done = self._call("bootstrap", domain, str(self.file))
            if done.status != _IO_ERROR or attempt == _BOOTSTRAP_TRIES:
                break
            self._sleep(_BOOTSTRAP_PAUSE_S)  # a label that was just booted out is refused for a moment
        _check(done, "load")

    def _unload(self, job: Job) -> None:
        done = self._call("bootout", f"{job.domain}/{LABEL}")
        _check(done, "unload", _NO_PROCESS, _STOPPING, _UNDER_WAY, _NO_SERVICE)
        self._wait(lambda: self.find_job() is None, _END_TIMEOUT_S, "launchd still holds the label")

    def _terminate(self, job: Job) -> None:
        _check(self._call("kill", "SIGTERM", f"{job.domain}/{LABEL}"), "stop", _NO_PROCESS)
        self._wait(lambda: not self._has_process(), _END_TIMEOUT_S, "the daemon has not ended")

    def _has_process(self) -> bool:
        job = self.find_job()
        return job is not None and job.pid is not None

    def _call(self, *arguments: str) -> Completed:
        return self._run(["/bin/launchctl", *arguments])


def _check(done: Completed, verb: str, *allowed: int) -> None:
    if done.status in (0, *allowed):
        return
    cause = _CAUSES.get(done.status, "launchctl failed")
    said = f": {done.said}" if done.said else ""
    raise ControlError(
        f"could not {verb} the service: {cause} (launchctl status {done.status}{said})",
        hint="mlxctl service uninstall, then mlxctl service install",
        code="service.refused",
    )
