"""Work that may never end, on threads that nobody else has."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from mlxd.own_thread import in_own_thread, join_own_threads


async def test_an_error_nobody_waits_for_is_nobodys_trouble() -> None:
    """The loop hears nothing of it."""
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    may_fail = threading.Event()

    def work() -> None:
        may_fail.wait()
        raise ValueError

    future = in_own_thread(work, "own")
    over = asyncio.Event()
    future.add_done_callback(lambda _: over.set())
    may_fail.set()
    async with asyncio.timeout(20):
        await over.wait()
    del future
    gc.collect()
    assert heard == []


async def test_whoever_waits_gets_the_result_or_the_error() -> None:
    """As if the work had been done here."""

    def work() -> None:
        raise ValueError("no")

    assert await in_own_thread(lambda: 3, "own") == 3
    with pytest.raises(ValueError, match="no"):
        await in_own_thread(work, "own")


async def test_a_waiter_that_is_cancelled_leaves_the_thread_to_itself() -> None:
    """What the work returns then is nobody's, and no error of the loop."""
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    may_end = threading.Event()
    future = in_own_thread(may_end.wait, "own-cancelled")
    future.cancel()
    may_end.set()
    await asyncio.to_thread(join_own_threads, "own-cancelled", 20)
    await asyncio.sleep(0)  # the result comes
    assert heard == []


async def test_only_threads_of_the_name_are_joined_and_not_for_ever() -> None:
    """One that hangs does not hold up the end of the process."""
    may_end = threading.Event()
    hanging = in_own_thread(may_end.wait, "own-hanging")
    join_own_threads("own-hanging", 0)
    join_own_threads("own-other", 3600)
    assert not hanging.done()
    may_end.set()
    join_own_threads("own-hanging", 3600)
    assert "own-hanging" not in {thread.name for thread in threading.enumerate()}
    assert await hanging
