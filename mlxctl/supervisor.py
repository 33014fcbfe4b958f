"""The service that keeps the daemon running from login on: what launchd and systemd have in common, and their choice.

Owns the verbs of a service: each is written once, on what `launchd.py` and `systemd.py` know to do. Knows no terminal.
Programs are run by an injected runner, so that each is tested on the other's system.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxd.protocol.errors import EXIT_INVALID, EXIT_NOT_FOUND, EXIT_UNREACHABLE, ControlError
from mlxd.protocol.paths import Home

# The interpreter starts in well under a second; a machine that has just booted is slower.
_LISTEN_TIMEOUT_S = 15.0
_POLL_S = 0.1
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended."""

    status: int
    stdout: str = ""
    stderr: str = ""

    @property
    def said(self) -> str:
        """Why it failed, in its own words."""
        return (self.stderr or self.stdout).strip()


Runner = Callable[[Sequence[str]], Completed]
Sleep = Callable[[float], None]
IsListening = Callable[[Path], bool]


def run(command: Sequence[str]) -> Completed:
    """Run a program to its end and return what it said; status 127 stands for one that is not there, as in a shell."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return Completed(127, "", str(error))
    return Completed(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Job:
    """What the supervisor says about a loaded service; its text is no stable API, so each part may be missing."""

    domain: str
    state: str | None
    pid: int | None
    last_exit: str | None


class Supervisor(ABC):
    """The one service of this user: `mlxd` with one `MLXD_HOME`, described by one *file*."""

    name: str  # "launchd" or "systemd"
    file_name: str

    def __init__(
        self,
        home: Home,
        is_listening: IsListening,
        *,
        folder: Path | None = None,
        python: str | None = None,
        run: Runner = run,
        sleep: Sleep | None = None,
    ) -> None:
        """Take the *home*, and what tells whether a daemon answers on a control socket.

        The rest is this user's and this interpreter's unless a test says otherwise.
        """
        self.home = home
        self.file = (self._usual_folder() if folder is None else folder) / self.file_name
        self.python = python if python is not None else sys.executable
        self._is_listening = is_listening
        self._run = run
        self._sleep = time.sleep if sleep is None else sleep

    @property
    @abstractmethod
    def early_log(self) -> str:
        """Where that stands which the daemon says before it has its log: a path or a command."""

    @abstractmethod
    def render(self) -> bytes:
        """Return the file as `install` would write it now."""

    @abstractmethod
    def find_job(self) -> Job | None:
        """Return what is known of the service; None when it is not loaded.

        Raises:
            ControlError: there is no supervisor to ask.
        """

    @abstractmethod
    def installed_python(self) -> str | None:
        """Return the interpreter that the file in place names, or None when there is none to read."""

    @property
    @abstractmethod
    def owns_home(self) -> bool:
        """Whether the file in place is for this home, so that its daemon is the supervisor's to start."""

    @abstractmethod
    def _usual_folder(self) -> Path:
        """Return where the supervisor looks for the files of this user."""

    @abstractmethod
    def _load(self, job: Job | None, *, has_changed: bool, at_login: bool) -> None:
        """Run the service as the file says, also *at_login*; a *job* whose file *has_changed* is replaced."""

    @abstractmethod
    def _terminate(self, job: Job) -> None:
        """End the process of *job* by SIGTERM and wait; the service stays loaded."""

    @abstractmethod
    def _unload(self, job: Job) -> None:
        """End the process of *job* and forget the service."""

    def _reread(self) -> None:  # noqa: B027  (launchd reads a file when it is told to load it)
        """Have the supervisor look at its files again."""

    def find_advice(self) -> str | None:
        """Return what the user should know of how the service lives, if anything."""
        return None

    def install(self) -> None:
        """Write the file, load it and wait until the daemon listens; a repeat with nothing changed only starts it.

        Raises:
            ControlError: a daemon that the supervisor does not own is running, or the supervisor refuses.
        """
        job = self.find_job()
        has_changed = job is None or not self.is_current
        if has_changed:
            self._refuse_beside_another(job)
            self._write_file()
        self._load(job, has_changed=has_changed, at_login=True)
        self._wait_until_listening()

    def uninstall(self) -> bool:
        """Stop the service and remove the file; False when there was neither.

        Raises:
            ControlError: the supervisor refuses.
        """
        job = self.find_job()
        was_installed = self.is_installed
        if job is not None:
            self._unload(job)
        self.file.unlink(missing_ok=True)
        if was_installed:
            self._reread()
        return job is not None or was_installed

    def start(self) -> None:
        """Start the installed service and wait until the daemon listens.

        Raises:
            ControlError: it cannot be started as it is installed, a daemon that the supervisor does not own is running,
                or the supervisor refuses.
        """
        self._require_installed()
        python = self.installed_python()
        if python is None or not os.access(python, os.X_OK):
            raise ControlError(
                f"the service cannot start: its interpreter is gone ({python}, in {self.file})",
                hint="mlxctl service install, which writes it anew",
                code="service.no_interpreter",
                exit_code=EXIT_INVALID,
            )
        job = self.find_job()
        self._refuse_beside_another(job)
        self._load(job, has_changed=False, at_login=False)
        self._wait_until_listening()

    def stop(self) -> bool:
        """End the daemon by SIGTERM and wait; it comes back at the next login. False when it did not run.

        Raises:
            ControlError: the supervisor refuses, or the daemon does not end.
        """
        job = self.find_job()
        if job is None or job.pid is None:
            return False
        self._terminate(job)
        return True

    def restart(self) -> None:
        """End the daemon in peace and start it again; a file that this installation would write otherwise is replaced.

        Raises:
            ControlError: it is not installed, or the supervisor refuses.
        """
        self._require_installed()
        self.stop()
        if self.is_current:
            self.start()
        else:
            self.install()

    @property
    def is_installed(self) -> bool:
        """Whether the file is in place."""
        return self.file.exists()

    @property
    def is_current(self) -> bool:
        """Whether the file in place is the one that would be written now."""
        return self.is_installed and self.file.read_bytes() == self.render()

    def _require_installed(self) -> None:
        if not self.is_installed:
            raise ControlError(
                f"the service is not installed: {self.file} does not exist",
                hint="mlxctl service install",
                code="service.not_installed",
                exit_code=EXIT_NOT_FOUND,
            )

    def _refuse_beside_another(self, job: Job | None) -> None:
        """Raise when the home is taken: a second daemon would be started again and again."""
        if (job is None or job.pid is None) and self._is_listening(self.home.socket):
            raise ControlError(
                f"a daemon that was not started by {self.name} uses {self.home.root} already",
                hint="mlxctl stop, then the same again",
                code="service.busy",
            )

    def _write_file(self) -> None:
        # Neither supervisor makes folders, and launchd refuses a plist that others may write.
        content = self.render()
        self.home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.logs.mkdir(mode=0o700, exist_ok=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.chmod(0o644)
        temporary.replace(self.file)

    def _wait_until_listening(self) -> None:
        self._wait(lambda: self._is_listening(self.home.socket), _LISTEN_TIMEOUT_S, "the daemon does not answer")

    def _wait(self, is_done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Return when *is_done*; look ten times a second.

        Raises:
            ControlError: not within *timeout_s*; *what* says what has not happened.
        """
        for _ in range(round(timeout_s / _POLL_S)):
            if is_done():
                return
            self._sleep(_POLL_S)
        raise ControlError(
            f"{what} after {timeout_s:g} s",
            hint="mlxctl service status, which names the log",
            code="service.timeout",
            exit_code=EXIT_UNREACHABLE,
        )


def make_supervisor(home: Home, timeout_s: float) -> Supervisor:
    """Return the supervisor of this system; *timeout_s* is how long a daemon may take to say hello."""
    from mlxctl.client import is_running  # late: the templates are found without it

    service: type[Supervisor]
    if is_mac():
        from mlxctl.launchd import LaunchAgent

        service = LaunchAgent
    else:
        from mlxctl.systemd import UserUnit

        service = UserUnit
    return service(home, lambda path: is_running(path, timeout_s), run=run)


def is_mac() -> bool:
    """Tell whether this is a Mac."""
    return sys.platform == "darwin"


def launchd_folder() -> Path:
    """Return the folder with the templates of both: beside this package in a wheel, at the top of a checkout.

    Raises:
        FileNotFoundError: the installation is damaged; the message names both places.
    """
    packed, checkout = _PACKAGE / "launchd", _PACKAGE.parent / "launchd"
    for folder in (packed, checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the installation is damaged: neither {packed} nor {checkout} exists")
