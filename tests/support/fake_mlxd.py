"""A process that behaves as mlxd does when it starts and stops: lock, socket, hello, `daemon.stop`.

    python -m tests.support.fake_mlxd HOME [fail|hang|drain|SOCKET]

`fail` ends with a reason on stderr before it listens, `hang` never listens, `drain` says that it is shutting down and
does so when it was asked; anything else is the socket to listen at instead of the home's.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from mlxd.protocol.errors import EXIT_CONFLICT
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl


def main() -> int:
    """Run until told to stop."""
    home = Home(Path(sys.argv[1]))
    mode = sys.argv[2] if len(sys.argv) > 2 else ""
    if mode == "fail":
        print("mlxd: the settings are beyond me", file=sys.stderr)
        return 1
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with home.lock.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return EXIT_CONFLICT
        lock.truncate(0)
        path = Path(mode) if "/" in mode else home.socket
        print(f"{os.getpid()}\n{path}", file=lock, flush=True)
        if mode == "hang":
            ended.wait()
            return 0
        path.unlink(missing_ok=True)

        def stop(frame: dict[str, Any]) -> dict[str, Any]:
            ended.set()
            return {}

        def status(frame: dict[str, Any]) -> dict[str, Any]:
            if mode == "drain":
                threading.Timer(0.05, ended.set).start()  # the one who asked is waiting by then
            shown = {"requests": [{}], "pool": {"draining": mode == "drain"}}
            return {**shown, "problems": ["the settings file is beyond me"]}

        with FakeControl(path, {"daemon.stop": stop, "status": status}):
            ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
