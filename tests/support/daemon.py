"""A real daemon in a child process, for tests across all seams."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openai import OpenAI

from mlxctl.client import is_running


class RealDaemon:
    """One `mlxd` with an `MLXD_HOME` of its own, driven as users drive it: by `mlxctl` and by HTTP."""

    def __init__(self, home: Path, *, environment: dict[str, str] | None = None, module: str = "mlxd") -> None:
        """Take the home, and the module that is run; nothing is started yet."""
        self.home = home
        self._module = module
        self.environment = {**os.environ, "MLXD_HOME": str(home), **(environment or {})}
        self.config = home / "config.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[OpenAI] = []

    def configure(self, text: str) -> None:
        """Write the settings file; `http.port` must be in it or the default port is used."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config.write_text(text)

    def start(self) -> None:
        """Start it in the foreground of a child, log to a file, and wait until it answers on the control socket."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.home / "daemon.stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_until_listening()

    def wait_until_listening(self) -> None:
        """Return when the control socket says hello; fail with the log when the process ends first."""
        assert self.process is not None
        while self.process.poll() is None:
            if is_running(self.home / "mlxd.sock", 30):
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)
        raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log()}")

    def log(self) -> str:
        """Return what the daemon wrote on stderr."""
        return (self.home / "daemon.stderr").read_text()

    def mlxctl(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one mlxctl command to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "mlxctl", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"mlxctl {' '.join(arguments)} → {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def ask(self, *arguments: str) -> dict[str, Any]:
        """Run one mlxctl command with `--json` and return its document."""
        document: dict[str, Any] = json.loads(self.mlxctl(*arguments, "--json").stdout)
        return document

    @property
    def base_url(self) -> str:
        """The OpenAI base URL, from `mlxctl status`."""
        return f"{self.ask('status')['http']['url']}/v1"

    def client(self, **options: Any) -> OpenAI:
        """Return an official client pointed at this daemon; it does not retry by itself."""
        client = OpenAI(base_url=self.base_url, api_key="unused", max_retries=0, timeout=300, **options)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close the connections of all clients, also those of streams that were not read to their end."""
        while self._clients:
            self._clients.pop().close()

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        """Send SIGKILL and reap."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)


@contextlib.contextmanager
def running_daemon(home: Path, config: str, **options: Any) -> Iterator[RealDaemon]:
    """Run a daemon with *config* and end it by SIGTERM; it must then exit 0."""
    daemon = RealDaemon(home, **options)
    daemon.configure(config)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.close_clients()
        assert daemon.process is not None
        if daemon.process.poll() is None:
            status = daemon.terminate()
            assert status == 0, daemon.log()
