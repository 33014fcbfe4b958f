"""The systemd user unit: its file, and what to do with it to install, start, stop, restart and remove the service.

Knows no terminal. All that reaches systemd goes through `systemctl.py`.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from mlxctl.resources import launchd_folder
from mlxctl.supervisor import IsListening, Job, Runner, Sleep, Supervisor, run
from mlxctl.systemctl import Systemctl
from mlxd.protocol.errors import EXIT_INVALID, ControlError
from mlxd.protocol.paths import Home

UNIT = "mlxd.service"
_HOME_VARIABLE = "MLXD_HOME="


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


class UserUnit(Supervisor):
    """The service as a systemd user unit."""

    name = "systemd"

    def __init__(
        self,
        home: Home,
        is_listening: IsListening,
        *,
        units: Path | None = None,
        python: str | None = None,
        run: Runner = run,
        sleep: Sleep = time.sleep,
    ) -> None:
        """Take the *home*, and what tells whether a daemon answers on a control socket.

        The rest is this user's and this interpreter's unless a test says otherwise.
        """
        folder = units if units is not None else _config_folder() / "systemd" / "user"
        super().__init__(folder / UNIT, home, is_listening, python, sleep)
        self._systemctl = Systemctl(UNIT, run=run)

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
        return self._systemctl.find_job()

    def installed_python(self) -> str | None:
        """Return the interpreter that the unit in place names, or None when there is none to read."""
        return self._read_word("ExecStart=:")

    @property
    def owns_home(self) -> bool:
        """Whether the unit in place is for this home, so that its daemon is systemd's to start."""
        return self._read_word("Environment=") == f"{_HOME_VARIABLE}{self.home.root}"

    def _read_word(self, key: str) -> str | None:
        try:
            lines = self.file.read_text(errors="surrogateescape").splitlines()
        except OSError:
            return None
        return next((unquote(line.removeprefix(key)) for line in lines if line.startswith(key)), None)

    def install(self) -> None:
        """Enable and start the unit, or restart it when it has changed."""
        job = self.find_job()
        is_current = job is not None and self.is_current
        if not is_current:
            self._refuse_beside_another(job)
            self._write_file()
            self._systemctl.reload()
        self._systemctl.enable()
        if not is_current and job is not None and job.pid is not None:
            self._systemctl.restart()
        else:
            self._systemctl.start()
        self._wait_until_listening()

    def uninstall(self) -> bool:
        """Stop and disable the unit and remove its file."""
        job = self.find_job()
        was_installed = self.is_installed
        if job is not None:
            self._systemctl.stop()
            self._systemctl.disable()
        self.file.unlink(missing_ok=True)
        if was_installed:
            self._systemctl.reload()
        return job is not None or was_installed

    def start(self) -> None:
        """Start the unit."""
        self._require_installed()
        self._require_python()
        job = self.find_job()
        self._refuse_beside_another(job)
        if job is None:  # a file that systemd has not read yet
            self._systemctl.reload()
        self._systemctl.start()
        self._wait_until_listening()

    def stop(self) -> bool:
        """Stop the unit; it stays enabled."""
        job = self.find_job()
        if job is None or job.pid is None:
            return False
        self._systemctl.stop()
        return True

    def restart(self) -> None:
        """Restart the unit; install it anew when it has changed."""
        self._require_installed()
        job = self.find_job()
        if job is None or not self.is_current:
            self.install()
            return
        self._refuse_beside_another(job)
        self._systemctl.restart()
        self._wait_until_listening()

    def find_advice(self) -> str | None:
        """Say how to keep it running after a logout, unless it does."""
        if self._systemctl.is_lingering() is not False:
            return None
        return "it ends at your last logout and starts at the next login; to keep it: loginctl enable-linger"


def _config_folder() -> Path:
    """Return where systemd looks for the units of a user."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(given) if Path(given).is_absolute() else Path.home() / ".config"
