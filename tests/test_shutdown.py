"""The last resort: what still runs at the end ends with the process, and the log says what it was."""

import subprocess
import sys

import pytest

from mlxd.daemon import _on_device_failed
from mlxd.protocol.errors import EXIT_OTHER, GenerationFailed
from mlxd.requests import RunningRequests
from mlxd.shutdown import Shutdown

ENDED_AT_LAST = """
import logging, sys, threading
from mlxd.protocol.errors import GenerationFailed
from mlxd.shutdown import Shutdown, end_at_last
shutdown = Shutdown()
if sys.argv[1] == "failed":
    shutdown.fail(GenerationFailed("a bug"))
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
end_at_last(0.0, lambda: sys.argv[1] == "importing", shutdown)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("importing", "INFO MLX was still being imported; the daemon ends without waiting for it\n"),
        (
            "hanging",
            "WARNING something hangs, a read of a model's files most likely; the daemon ends without waiting for it\n",
        ),
    ],
)
def test_an_import_is_no_read_that_hangs(state: str, words: str) -> None:
    """A daemon that is stopped in its first seconds ends in order and says what it did not wait for."""
    done = subprocess.run(
        [sys.executable, "-c", ENDED_AT_LAST, state], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, words)


def test_a_daemon_that_failed_does_not_end_as_if_all_were_well() -> None:
    """A service manager starts it again after this status, also where something hangs at the end."""
    command = [sys.executable, "-c", ENDED_AT_LAST, "failed"]
    assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 1


async def test_a_failed_device_makes_the_daemon_unready_in_the_same_turn() -> None:
    """No request is taken, and no probe hears "ready", between the failure and the end."""
    requests, shutdown = RunningRequests(), Shutdown()
    _on_device_failed(requests, shutdown, GenerationFailed("the device thread failed"))
    assert requests.is_closed
    assert shutdown.exit_status == EXIT_OTHER
    await shutdown.wait_hurried()
