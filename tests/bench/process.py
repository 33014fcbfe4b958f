"""The child processes of a benchmark: workers that speak JSON lines, mlx_lm.server, and what the system says of one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

_START_TIMEOUT_S = 60


class Worker:
    """A child that answers each JSON line with JSON lines."""

    def __init__(self, module: str, *arguments: str) -> None:
        """Start `python -m module`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_START_TIMEOUT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, **command: Any) -> None:
        """Give the next command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Return the next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        """Give a command and return its answer."""
        self.send(**command)
        return self.receive()


@contextlib.contextmanager
def running_mlx_lm_server(folder: Path, log: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Run `mlx_lm.server` on a model folder and yield its port and process id."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(folder), "--port", str(port), *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--log-level", "WARNING"],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_listening(port, process, log)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(_START_TIMEOUT_S)


def _wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        time.sleep(0.1)
    raise RuntimeError(f"mlx_lm.server does not answer:\n{log.read_text()}")


def read_rss_bytes(pid: int) -> int:
    """Return the resident memory of a process; `ps` knows it too, and costs other processes time."""
    statm = Path(f"/proc/{pid}/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(_ask_ps(pid, "rss")) * 1024


def read_cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, to a hundredth."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        fields = stat.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    used_s = 0.0
    for part in _ask_ps(pid, "time").split(":"):  # macOS: [hours:]minutes:seconds.hundredths
        used_s = used_s * 60 + float(part)
    return used_s


def read_wakeups(pid: int) -> int | None:
    """Return how often threads of a process were woken so far (voluntary context switches); None where unknown."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.exists():
        return None
    lines = [line for task in tasks.iterdir() for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _ask_ps(pid: int, column: str) -> str:
    command = ["ps", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
