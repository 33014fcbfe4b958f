"""A user's systemd with one unit: answers `systemctl --user` as Linux does, keeps what it is asked, fails on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlxctl.supervisor import Completed

UNIT = "mlxd.service"
NO_BUS = "Failed to connect to bus: No medium found"


class FakeSystemctl:
    """State and record; `runner` stands for `mlxctl.supervisor.run`. Unit files are read from *units* at a reload."""

    def __init__(self, units: Path, *, lingers: bool | None = False) -> None:
        """Say whether services outlive a logout; None: `loginctl` is not there."""
        self.pid: int | None = None
        self.is_enabled = False
        self.content: bytes | None = None  # the unit as it was read last
        self.running_content: bytes | None = None  # the unit as the process was started with
        self.commands: list[list[str]] = []
        self.failures: dict[str, list[Completed]] = {}  # verb → its next answers
        self._units = units
        self._lingers = lingers
        self._starts = 0

    @property
    def mutations(self) -> list[str]:
        """What was asked for besides looking, as a person would type it."""
        looks = ("show", "show-user")
        return [" ".join(command) for command in self.commands if not any(look in command for look in looks)]

    def is_listening(self, path: object) -> bool:
        """The daemon listens as soon as it runs."""
        return self.pid is not None

    def sleep(self, seconds: float) -> None:
        """Nothing takes time here."""

    def runner(self, command: Sequence[str]) -> Completed:
        """Answer one command line."""
        command = [word for word in command if word != "env" and not word.startswith("XDG_RUNTIME_DIR=")]
        self.commands.append(command)
        if command[0] == "loginctl":
            return Completed(127) if self._lingers is None else Completed(0, "yes\n" if self._lingers else "no\n")
        program, scope, verb, *arguments = command
        assert (program, scope) == ("systemctl", "--user")
        planned = self.failures.get(verb, [])
        if planned:
            return planned.pop(0)
        names = [argument for argument in arguments if not argument.startswith("-")]
        assert names == ([] if verb == "daemon-reload" else [UNIT])
        answer: Completed = getattr(self, f"_{verb.replace('-', '_')}")()
        return answer

    def _show(self) -> Completed:
        # The properties come in systemd's order, not in the one they were asked for in.
        is_up = self.pid is not None
        lines = [
            "Result=success",
            f"MainPID={self.pid if self.pid is not None else 0}",
            "ExecMainCode=0" if is_up or self._starts == 0 else "ExecMainCode=1",
            "ExecMainStatus=0",
            f"LoadState={'loaded' if self.content is not None else 'not-found'}",
            f"ActiveState={'active' if is_up else 'inactive'}",
            f"SubState={'running' if is_up else 'dead'}",
        ]
        return Completed(0, "\n".join(lines) + "\n")

    def _daemon_reload(self) -> Completed:
        file = self._units / UNIT
        self.content = file.read_bytes() if file.exists() else None
        return Completed(0)

    def _enable(self) -> Completed:
        self.is_enabled = True
        return Completed(0)

    def _disable(self) -> Completed:
        self.is_enabled = False
        return Completed(0)

    def _reset_failed(self) -> Completed:
        return Completed(1, "", f"Failed to reset failed state of unit {UNIT}: Unit {UNIT} not loaded.")

    def _start(self) -> Completed:
        if self.content is None:
            return Completed(5, "", f"Failed to start {UNIT}: Unit {UNIT} not found.")
        if self.pid is None:
            self._starts += 1
            self.pid, self.running_content = 4700 + self._starts, self.content
        return Completed(0)

    def _stop(self) -> Completed:
        self.pid = None
        return Completed(0)

    def _restart(self) -> Completed:
        self.pid = None
        return self._start()
