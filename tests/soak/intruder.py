"""Faults that nobody can order from outside: slow disks and a jumping clock. Loaded into the daemon at its start.

`sitecustomize` of a folder in front of its PYTHONPATH imports this. Must not import anything of the daemon.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

CLOCK = "MLXD_SOAK_CLOCK"  # a file whose time of change is by how much the clock is wrong, in seconds
SLOW = os.sep + "slow-"  # each file in a folder named so takes long to open
_OPEN_S = 0.4
_TIME = time.time


def intrude() -> None:
    """Slow down files of some folders, have the clock jump as the file says, and tell all stacks at SIGUSR1."""
    faulthandler.register(signal.SIGUSR1)
    clock = os.environ[CLOCK]

    def look(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and SLOW in str(args[0]):
            time.sleep(_OPEN_S)

    def jumping() -> float:
        try:
            return _TIME() + os.stat(clock).st_mtime  # noqa: PTH116  (called at every request)
        except OSError:
            return _TIME()

    sys.addaudithook(look)
    time.time = jumping


def prepare(folder: Path) -> dict[str, str]:
    """Write what has a daemon import this; return the environment to start it with."""
    folder.mkdir(parents=True)
    root = Path(__file__).parent.parent.parent
    (folder / "sitecustomize.py").write_text("from tests.soak.intruder import intrude\nintrude()\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(root)]), CLOCK: str(folder / "clock")}


def set_clock(folder: Path, wrong_by_s: float) -> None:
    """Have the daemon's clock be wrong by so much from now on."""
    clock = folder / "clock"
    clock.touch()
    os.utime(clock, (wrong_by_s, wrong_by_s))
