"""The `launchctl` command lines for one label, and what their answers mean.

Knows no plist and no terminal.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from mlxctl.supervisor import Completed, Job, Runner, Sleep, run, wait
from mlxd.protocol.errors import ControlError

_LAUNCHCTL = "/bin/launchctl"
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


def parse_print(text: str, domain: str) -> Job:
    """Read the output of `launchctl print`; only lines one level deep belong to the service itself."""

    def find(name: str) -> str | None:
        match = re.search(rf"^\t{name} = (.+)$", text, re.MULTILINE)
        return match[1].strip() if match else None

    pid = find("pid")
    return Job(domain, find("state"), int(pid) if pid and pid.isdecimal() else None, find("last exit code"))


class Launchctl:
    """One label of this user's launchd."""

    def __init__(self, label: str, uid: int, *, run: Runner = run, sleep: Sleep = time.sleep) -> None:
        """Take the *label*, and the user it belongs to."""
        self._label = label
        self._uid = uid
        self._run = run
        self._sleep = sleep

    def find_job(self) -> Job | None:
        """Return the service, be it loaded in the console session or over ssh; None when it is not loaded."""
        for domain in (f"gui/{self._uid}", f"user/{self._uid}"):
            shown = self._run([_LAUNCHCTL, "print", f"{domain}/{self._label}"])
            if shown.status == 0:
                return parse_print(shown.stdout, domain)
        return None

    def is_running(self) -> bool:
        """Tell whether the service has a process."""
        job = self.find_job()
        return job is not None and job.pid is not None

    def bootstrap(self, plist: Path) -> None:
        """Load the service from *plist*, which starts it.

        Raises:
            ControlError: launchd refuses.
        """
        # gui/ needs a console session and is what a login uses; user/ is what ssh without one has.
        has_console = self._run([_LAUNCHCTL, "print", f"gui/{self._uid}"]).status == 0
        domain = f"{'gui' if has_console else 'user'}/{self._uid}"
        self._run([_LAUNCHCTL, "enable", f"{domain}/{self._label}"])  # forgets an earlier `launchctl disable`
        for attempt in range(1, _BOOTSTRAP_TRIES + 1):
            done = self._run([_LAUNCHCTL, "bootstrap", domain, str(plist)])
            if done.status != _IO_ERROR or attempt == _BOOTSTRAP_TRIES:
                break
            self._sleep(_BOOTSTRAP_PAUSE_S)  # a label that was just booted out is refused for a moment
        _check(done, "load", allowed=set())

    def bootout(self, job: Job) -> None:
        """Unload *job*, which ends its process, and wait until the label is free.

        Raises:
            ControlError: launchd refuses, or the label stays taken.
        """
        done = self._run([_LAUNCHCTL, "bootout", f"{job.domain}/{self._label}"])
        _check(done, "unload", allowed={_NO_PROCESS, _STOPPING, _UNDER_WAY, _NO_SERVICE})
        wait(lambda: self.find_job() is None, _END_TIMEOUT_S, "launchd still holds the label", self._sleep)

    def kickstart(self, job: Job, *flags: str) -> None:
        """Start the loaded *job*; `-k` first ends a process it has.

        Raises:
            ControlError: launchd refuses.
        """
        done = self._run([_LAUNCHCTL, "kickstart", *flags, f"{job.domain}/{self._label}"])
        _check(done, "start", allowed={_UNDER_WAY})

    def terminate(self, job: Job) -> None:
        """Send SIGTERM and wait until the process has ended; the service stays loaded.

        Raises:
            ControlError: launchd refuses, or the process does not end.
        """
        done = self._run([_LAUNCHCTL, "kill", "SIGTERM", f"{job.domain}/{self._label}"])
        _check(done, "stop", allowed={_NO_PROCESS})
        wait(lambda: not self.is_running(), _END_TIMEOUT_S, "the daemon has not ended", self._sleep)


def _check(done: Completed, verb: str, allowed: set[int]) -> None:
    if done.status == 0 or done.status in allowed:
        return
    said = (done.stderr or done.stdout).strip()
    cause = _CAUSES.get(done.status, "launchctl failed")
    raise ControlError(
        f"could not {verb} the service: {cause} (launchctl status {done.status}{': ' + said if said else ''})",
        hint="mlxctl service uninstall, then mlxctl service install",
        code="service.refused",
    )
