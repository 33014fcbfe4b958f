"""Waiting for what may never answer, a keychain or a dead disk, on a thread that holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result]) -> asyncio.Future[Result]:
    """Run *work* on a thread of its own and return the future of its result or error.

    The thread is a daemon and of no pool: one that hangs takes no place of others, and the process ends without it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # the result of a work that returns None
        else:
            future.set_exception(error)
            future.exception()  # whoever waited may have left: nobody is to be told then

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 handed on to whoever waits
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="mlxd-secret", daemon=True).start()
    return future
