"""`kill -9` in the middle of `config set`."""

from __future__ import annotations

import random
import subprocess
import sys
import tomllib

from tests.support.daemon import RealDaemon

N_KILLS = 20
STORM = """\
import sys
from pathlib import Path

from mlxctl.client import Client
from mlxd.protocol.errors import ControlError

try:
    client = Client(Path(sys.argv[1]), 30)
    for index in range(10_000):
        client.request("settings.set", {"changes": {"queue.size": 100 + index}})
        print(index, flush=True)
except (ControlError, OSError):
    pass
"""


def test_the_file_is_the_old_one_or_the_new_one_and_the_daemon_starts(daemon: RealDaemon) -> None:
    """Twenty kills at random moments of a storm of commits: each time the file is whole, and a start takes it."""
    chance = random.Random(1)
    for round_number in range(N_KILLS):
        storm = subprocess.Popen(
            [
                sys.executable,
                "-c",
                STORM,
                str(daemon.home / "mlxd.sock"),
            ],
            env=daemon.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert storm.stdout is not None
        seen = -1
        for _ in range(1 + chance.randrange(12)):
            seen = int(storm.stdout.readline())
        daemon.kill()
        rest = storm.communicate()[0].split()
        seen = int(rest[-1]) if rest else seen

        size = tomllib.loads(daemon.config.read_text())["queue"]["size"]

        assert size in {100 + seen, 101 + seen}, f"round {round_number}"
        assert "# all that models may take" in daemon.config.read_text()
        daemon.start()
        assert daemon.ask("config", "get", "queue.size")["value"] == size
