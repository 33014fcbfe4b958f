"""The LaunchAgent: its plist, and what to do with it to install, start, stop, restart and remove it.

Knows no terminal. All that reaches launchd goes through `launchctl.py`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlxctl.launchctl import Job, Launchctl, Runner, Sleep, run, wait
from mlxctl.resources import launchd_folder
from mlxd.protocol.errors import EXIT_NOT_FOUND, ControlError
from mlxd.protocol.paths import Home

LABEL = "local.mlxd"
# The interpreter starts in well under a second; a Mac that has just booted is slower.
_LISTEN_TIMEOUT_S = 15.0


def render(home: Home, python: str) -> bytes:
    """Return the plist for this *home*, run by the interpreter *python*."""
    import plistlib

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


class LaunchAgent:
    """The one LaunchAgent of this user: `mlxd` with one `MLXD_HOME`."""

    def __init__(
        self,
        home: Home,
        is_listening: Callable[[Path], bool],
        *,
        agents: Path | None = None,
        python: str | None = None,
        run: Runner = run,
        sleep: Sleep = time.sleep,
    ) -> None:
        """Take the *home*, and what tells whether a daemon answers on a control socket.

        The rest is this user's and this interpreter's unless a test says otherwise.
        """
        folder = agents if agents is not None else Path.home() / "Library" / "LaunchAgents"
        self.plist = folder / f"{LABEL}.plist"
        self.home = home
        self.python = python if python is not None else sys.executable
        self._launchctl = Launchctl(LABEL, os.getuid(), run=run, sleep=sleep)
        self._is_listening = is_listening
        self._sleep = sleep

    def find_job(self) -> Job | None:
        """Return what launchd knows of the service; None when it is not loaded."""
        return self._launchctl.find_job()

    @property
    def is_installed(self) -> bool:
        """Whether the plist is in place."""
        return self.plist.exists()

    @property
    def is_current(self) -> bool:
        """Whether the plist in place is the one that would be written now."""
        return self.is_installed and self.plist.read_bytes() == render(self.home, self.python)

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
        import plistlib
        from xml.parsers.expat import ExpatError

        try:
            document = plistlib.loads(self.plist.read_bytes())
        except (OSError, plistlib.InvalidFileException, ExpatError):
            return {}
        return document if isinstance(document, dict) else {}

    def install(self) -> None:
        """Write the plist, load it and wait until the daemon listens; a repeat with nothing changed only starts it.

        Raises:
            ControlError: a daemon that launchd does not own is running, or launchd refuses.
        """
        job = self.find_job()
        if job is not None and self.is_current:
            self._launchctl.kickstart(job)
        else:
            self._refuse_beside_another(job)
            self._write_plist()
            if job is not None:
                self._launchctl.bootout(job)
            self._launchctl.bootstrap(self.plist)
        self._wait_until_listening()

    def uninstall(self) -> bool:
        """Stop the service and remove the plist; False when there was neither.

        Raises:
            ControlError: launchd refuses.
        """
        job = self.find_job()
        if job is not None:
            self._launchctl.bootout(job)
        was_installed = self.is_installed
        self.plist.unlink(missing_ok=True)
        return job is not None or was_installed

    def start(self) -> None:
        """Start the installed service and wait until the daemon listens.

        Raises:
            ControlError: it is not installed, a daemon that launchd does not own is running, or launchd refuses.
        """
        self._require_installed()
        job = self.find_job()
        self._refuse_beside_another(job)
        if job is None:
            self._launchctl.bootstrap(self.plist)
        else:
            self._launchctl.kickstart(job)
        self._wait_until_listening()

    def stop(self) -> bool:
        """End the daemon by SIGTERM and wait; it comes back at the next login. False when it did not run.

        Raises:
            ControlError: launchd refuses, or the daemon does not end.
        """
        job = self.find_job()
        if job is None or job.pid is None:
            return False
        self._launchctl.terminate(job)
        return True

    def restart(self) -> None:
        """End the daemon in peace and start it again; a plist that this installation would write otherwise is replaced.

        Raises:
            ControlError: it is not installed, or launchd refuses.
        """
        self._require_installed()
        self.stop()
        job = self.find_job()
        if job is None or not self.is_current:
            self.install()
            return
        self._launchctl.kickstart(job, "-k")  # -k: it may have come back by itself
        self._wait_until_listening()

    def _require_installed(self) -> None:
        if not self.is_installed:
            raise ControlError(
                f"the service is not installed: {self.plist} does not exist",
                hint="mlxctl service install",
                code="service.not_installed",
                exit_code=EXIT_NOT_FOUND,
            )

    def _refuse_beside_another(self, job: Job | None) -> None:
        """Raise when the home is taken: launchd would start a second daemon again and again."""
        if (job is None or job.pid is None) and self._is_listening(self.home.socket):
            raise ControlError(
                f"a daemon that was not started by launchd uses {self.home.root} already",
                hint="mlxctl stop, then the same again",
                code="service.busy",
            )

    def _write_plist(self) -> None:
        # launchd makes no folders, and refuses a plist that others may write.
        self.home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.logs.mkdir(mode=0o700, exist_ok=True)
        self.plist.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.plist.with_suffix(".tmp")
        temporary.write_bytes(render(self.home, self.python))
        temporary.chmod(0o644)
        temporary.replace(self.plist)

    def _wait_until_listening(self) -> None:
        wait(lambda: self._is_listening(self.home.socket), _LISTEN_TIMEOUT_S, "the daemon does not answer", self._sleep)
