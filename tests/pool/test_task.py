"""`Conditions`: tasks that wait for the pool to become something."""

from __future__ import annotations

import asyncio

import pytest

from mlxd.pool.task import Conditions
from tests.support.clock import FakeClock


async def test_a_condition_that_fails_harms_only_the_task_that_waits_for_it() -> None:
    """It raises what the condition raised; whoever has the conditions looked at and all other tasks go on."""
    watch, known = Conditions(FakeClock()), {"a": False, "b": False}
    first = asyncio.create_task(watch.wait_until(lambda: known["a"]))
    second = asyncio.create_task(watch.wait_until(lambda: known["b"]))
    await asyncio.sleep(0)

    del known["a"]
    known["b"] = True
    watch.look()
    with pytest.raises(KeyError):
        await first
    assert await second
    watch.look()
