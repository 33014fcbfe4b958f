"""A launchd with one label: answers `launchctl` as a Mac does, records what it was asked, and fails on demand."""

from __future__ import annotations

from collections.abc import Sequence

from mlxctl.supervisor import Completed

_PRINTED = """{domain}/{label} = {{
\tactive count = {running}
\tpath = /Users/ada/Library/LaunchAgents/{label}.plist
\ttype = LaunchAgent
\tstate = {state}

\tprogram = /usr/bin/python3
\tdefault environment = {{
\t\tpid = 1
\t}}
{pid}\tlast exit code = {last_exit}
}}
"""


class FakeLaunchctl:
    """State and record; `runner` stands for `mlxctl.supervisor.run`, and `passes` counts the pauses between polls."""

    def __init__(self, *, has_console: bool = True, bootout_takes: int = 0, end_takes: int = 0) -> None:
        """Say how many pauses the label needs to clear after a bootout, and the process to end after SIGTERM."""
        self.domain: str | None = None  # where the label is loaded
        self.pid: int | None = None
        self.commands: list[list[str]] = []
        self.failures: dict[str, list[int]] = {}  # verb → statuses of its next calls; 0 goes through
        self._has_console = has_console
        self._bootout_takes = bootout_takes
        self._end_takes = end_takes
        self._pauses_to_clear: int | None = None
        self._pauses_to_end: int | None = None
        self.pauses = 0

    @property
    def mutations(self) -> list[str]:
        """What was asked for besides looking, as a person would type it."""
        return [" ".join(command[1:]) for command in self.commands if command[1] != "print"]

    def is_listening(self, path: object) -> bool:
        """The daemon listens as soon as it runs."""
        return self.pid is not None

    def sleep(self, seconds: float) -> None:
        """Let one pause pass."""
        self.pauses += 1
        if self._pauses_to_clear is not None:
            self._pauses_to_clear -= 1
            if self._pauses_to_clear <= 0:
                self.domain, self.pid, self._pauses_to_clear = None, None, None
        if self._pauses_to_end is not None:
            self._pauses_to_end -= 1
            if self._pauses_to_end <= 0:
                self.pid, self._pauses_to_end = None, None

    def runner(self, command: Sequence[str]) -> Completed:
        """Answer one command line."""
        self.commands.append(list(command))
        program, verb, *arguments = command
        assert program == "/bin/launchctl"
        planned = self.failures.get(verb, [])
        status = planned.pop(0) if planned else 0
        if status:
            return Completed(status, "", f"{verb} failed: {status}: made up")
        answer: Completed = getattr(self, f"_{verb}")(*arguments)
        return answer

    def _print(self, target: str) -> Completed:
        if target.count("/") == 1:
            return Completed(0 if self._has_console or target.startswith("user/") else 125)
        domain, _, label = target.rpartition("/")
        if domain != self.domain:
            return Completed(113, "", f'Could not find service "{label}" in domain for {domain}')
        pid = f"\tpid = {self.pid}\n" if self.pid else ""
        running = int(self.pid is not None)
        state = "running" if running else "not running"
        last_exit = "(never exited)" if running else "0"
        shown = _PRINTED.format(domain=domain, label=label, running=running, state=state, pid=pid, last_exit=last_exit)
        return Completed(0, shown)

    def _enable(self, target: str) -> Completed:
        return Completed(0)

    def _bootstrap(self, domain: str, plist: str) -> Completed:
        if self.domain is not None:
            return Completed(5, "", "Bootstrap failed: 5: Input/output error")
        self.domain, self.pid = domain, 4711
        return Completed(0)

    def _bootout(self, target: str) -> Completed:
        if self._bootout_takes:
            self._pauses_to_clear = self._bootout_takes
        else:
            self.domain, self.pid = None, None
        return Completed(0)

    def _kickstart(self, *arguments: str) -> Completed:
        self.pid = 4712
        return Completed(0)

    def _kill(self, signal_name: str, target: str) -> Completed:
        assert signal_name == "SIGTERM"
        if self.pid is None:
            return Completed(3, "", "No process to signal.")
        if self._end_takes:
            self._pauses_to_end = self._end_takes
        else:
            self.pid = None
        return Completed(0)
