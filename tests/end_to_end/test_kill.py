"""`kill -9` in the middle of `config set`."""

from __future__ import annotations

import contextlib
import random
import tomllib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mlxctl.client import Client
from mlxd.protocol.errors import ControlError
from tests.support.daemon import RealDaemon

N_KILLS = 10


def storm(socket: Path, committed: SimpleQueue[int]) -> None:
    """Commit one size of the queue after the other, and say each that was answered, until the daemon is gone."""
    with contextlib.suppress(ControlError), Client(socket, 30) as client:
        for size in range(100, 10_000):
            client.request("settings.set", {"changes": {"queue.size": size}})
            committed.put(size)


def test_the_file_is_the_old_one_or_the_new_one_and_the_daemon_starts(daemon: RealDaemon) -> None:
    """Ten kills at random moments of a storm of commits: each time the file is whole, and a start takes it."""
    chance = random.Random(1)
    socket = daemon.home / "mlxd.sock"
    with ThreadPoolExecutor(1) as thread:
        for round_number in range(N_KILLS):
            committed: SimpleQueue[int] = SimpleQueue()
            ended: Future[None] = thread.submit(storm, socket, committed)
            for _ in range(1 + chance.randrange(12)):
                seen = committed.get(timeout=60)
            daemon.kill()
            ended.result()
            while not committed.empty():
                seen = committed.get()

            size = tomllib.loads(daemon.config.read_text())["queue"]["size"]

            assert size in {seen, seen + 1}, f"round {round_number}"
            assert "# all that models may take" in daemon.config.read_text()
            daemon.start()
            with Client(socket, 30) as client:
                assert client.request("settings.get", {"key": "queue.size"}).result["value"] == size
