"""Waiting for what may never answer, a keychain or a dead disk, on a thread that holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result], name: str) -> asyncio.Future[Result]:
    """Run *work* on a thread of its own, called *name*, and return the future of its result or error.

    The thread is a daemon and of no pool: one that hangs takes no place of others, and the process ends without it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    future.add_done_callback(lambda _: future.cancelled() or future.exception())  # nobody may be waiting any more

    def deliver(settle: Callable[[], None]) -> None:
        if not future.done():  # cancelled meanwhile
            settle()

    def run() -> None:
        settle: Callable[[], None]
        try:
            settle = partial(future.set_result, work())
        except Exception as error:  # noqa: BLE001 handed on to whoever waits
            settle = partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, settle)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def join_own_threads(name: str, within_s: float) -> None:
    """Wait until the threads called *name* have ended, but no longer than *within_s*."""
    end_s = time.monotonic() + within_s
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(max(0.0, end_s - time.monotonic()))
