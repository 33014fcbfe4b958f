"""The LaunchAgent: its plist, and what to do with it to install, start, stop, restart and remove it.

Knows no terminal. All that reaches launchd goes through `launchctl.py`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mlxctl.launchctl import Launchctl
from mlxctl.resources import launchd_folder
from mlxctl.supervisor import IsListening, Job, Runner, Sleep, Supervisor, run
from mlxd.protocol.paths import Home

LABEL = "local.mlxd"


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


class LaunchAgent(Supervisor):
    """The service as a LaunchAgent."""

    name = "launchd"

    def __init__(
        self,
        home: Home,
        is_listening: IsListening,
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
        super().__init__(folder / f"{LABEL}.plist", home, is_listening, python, sleep)
        self._launchctl = Launchctl(LABEL, os.getuid(), run=run, sleep=sleep)

    @property
    def early_log(self) -> str:
        """The file that launchd writes to."""
        return str(early_log_path(self.home))

    def render(self) -> bytes:
        """Return the plist."""
        return render(self.home, self.python)

    def find_job(self) -> Job | None:
        """Return what launchd knows of the service; None when it is not loaded."""
        return self._launchctl.find_job()

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
            document = plistlib.loads(self.file.read_bytes())
        except (OSError, plistlib.InvalidFileException, ExpatError):
            return {}
        return document if isinstance(document, dict) else {}

    def install(self) -> None:
        """Bootstrap the plist, after a bootout when it has changed."""
        job = self.find_job()
        if job is not None and self.is_current:
            self._launchctl.kickstart(job)
        else:
            self._refuse_beside_another(job)
            self._write_file()
            if job is not None:
                self._launchctl.bootout(job)
            self._launchctl.bootstrap(self.file)
        self._wait_until_listening()

    def uninstall(self) -> bool:
        """Boot the service out and remove the plist."""
        job = self.find_job()
        if job is not None:
            self._launchctl.bootout(job)
        was_installed = self.is_installed
        self.file.unlink(missing_ok=True)
        return job is not None or was_installed

    def start(self) -> None:
        """Kickstart the service, or bootstrap it when it is not loaded."""
        self._require_installed()
        self._require_python()
        job = self.find_job()
        self._refuse_beside_another(job)
        if job is None:
            self._launchctl.bootstrap(self.file)
        else:
            self._launchctl.kickstart(job)
        self._wait_until_listening()

    def stop(self) -> bool:
        """Send SIGTERM and wait; the service stays loaded."""
        job = self.find_job()
        if job is None or job.pid is None:
            return False
        self._launchctl.terminate(job)
        return True

    def restart(self) -> None:
        """Stop and kickstart; install anew when the plist has changed."""
        self._require_installed()
        self.stop()
        job = self.find_job()
        if job is None or not self.is_current:
            self.install()
            return
        self._launchctl.kickstart(job, "-k")  # -k: it may have come back by itself
        self._wait_until_listening()
