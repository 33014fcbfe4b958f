"""Reads models' folders, each on a thread of its own: a disk that hangs delays nobody but the loads from it.

The threads are daemon threads, which the end of the process does not wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mlxd.engine.base import LoadSpec, WorkingOn
from mlxd.engine.command import ModelFiles
from mlxd.engine.fault import load_failure
from mlxd.protocol.errors import MlxdError

T = TypeVar("T")

# A read that does not hang has ended by then. One in foreign code that ends together with the interpreter may abort.
_CLOSE_S = 1.0


class FolderReaders:
    """The reads under way."""

    def __init__(self, loop: asyncio.AbstractEventLoop, working_on: WorkingOn) -> None:
        """Deliver to *loop*, on which `read` is called; the threads enter *working_on*."""
        self._loop = loop
        self._working_on = working_on
        self._threads: set[threading.Thread] = set()

    async def run(self, read: Callable[[LoadSpec], T], spec: LoadSpec) -> T:
        """Return what *read* returns, or raise its error. Cancelled, it leaves the thread to itself."""
        answer: asyncio.Future[T] = self._loop.create_future()
        thread = threading.Thread(target=self._run, args=(read, spec, answer), name="mlxd-folder", daemon=True)
        self._threads.add(thread)
        thread.start()
        return await answer

    def close(self) -> None:
        """Wait a moment for the threads that do not hang."""
        end_s = time.monotonic() + _CLOSE_S
        for thread in list(self._threads):
            thread.join(max(0.0, end_s - time.monotonic()))

    def _run(self, read: Callable[[LoadSpec], T], spec: LoadSpec, answer: asyncio.Future[T]) -> None:
        try:
            with self._working_on(spec.model_id, on_device=False):
                settle = partial(answer.set_result, read(spec))
        except BaseException as error:  # noqa: BLE001 the thread ends here, and its caller waits
            settle = partial(answer.set_exception, _failure(spec, error))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, threading.current_thread(), answer, settle)

    def _settle(self, thread: threading.Thread, answer: asyncio.Future[T], settle: partial[None]) -> None:
        self._threads.discard(thread)
        if not answer.done():  # cancelled meanwhile
            settle()


def read_files(spec: LoadSpec) -> ModelFiles:
    """Read what a load needs of the folder before its weights.

    Raises:
        LoadFailed: something is missing or damaged.
    """
    from mlxd.engine import source  # imports mlx, which the device thread has done by now

    return source.read_model_files(spec)


def check_adapter(spec: LoadSpec) -> None:
    """Look at an adapter's folder.

    Raises:
        LoadFailed: something is missing or damaged.
    """
    from mlxd.engine import source

    source.check_adapter(spec)


def _failure(spec: LoadSpec, error: BaseException) -> MlxdError:
    return error if isinstance(error, MlxdError) else load_failure(spec.model_id, error)
