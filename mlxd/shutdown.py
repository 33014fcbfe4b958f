"""End the daemon: the first signal drains, the second cancels. Owns the signals and the wish to end.

And the last resort: a thread that hangs in the system, in a read from a disk that is gone, ends with the process only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable

from mlxd.protocol.errors import EXIT_OK, EXIT_OTHER, MlxdError

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """The wish to end, from a signal or from `mlxctl stop`, and with which status."""

    def __init__(self) -> None:
        self.exit_status = EXIT_OK
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()

    def take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let SIGTERM and SIGINT ask; a second one hurries."""
        for number in _SIGNALS:
            loop.add_signal_handler(number, self.ask)

    def ask(self, now: bool = False) -> None:  # noqa: FBT001, FBT002  (the control plane's `now`)
        """Ask for the end; with *now*, or when asked again, running requests are cancelled."""
        if now or self._asked.is_set():
            self._hurried.set()
        self._asked.set()

    def fail(self, error: MlxdError) -> None:
        """Ask for the end at once, with a status after which a service manager starts the daemon again."""
        _log.critical("mlxd ends, so that a new one can begin with nothing: %s", error.message)
        self.exit_status = EXIT_OTHER
        self.ask(now=True)

    async def wait(self) -> None:
        """Return when somebody has asked."""
        await self._asked.wait()

    async def wait_hurried(self) -> None:
        """Return when nobody wants to wait for requests any more."""
        await self._hurried.wait()


def end_at_last(after_s: float, is_importing: Callable[[], bool], shutdown: Shutdown) -> None:
    """End the process within *after_s*, whatever still runs by then; all that must be kept has been written.

    Args:
        after_s: how long what still runs may take.
        is_importing: tells whether MLX is still being imported, which takes seconds and cannot be stopped.
        shutdown: knows the exit status.
    """
    timer = threading.Timer(after_s, _end, [is_importing, shutdown])
    timer.daemon = True  # it does not keep a process that ends by itself
    timer.start()


def _end(is_importing: Callable[[], bool], shutdown: Shutdown) -> None:
    if is_importing():
        _log.info("MLX was still being imported; the daemon ends without waiting for it")
    else:
        _log.warning("something hangs, a read of a model's files most likely; the daemon ends without waiting for it")
    logging.shutdown()
    os._exit(shutdown.exit_status)
