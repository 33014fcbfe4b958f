"""`tests.soak.ending`: a part of the soak that does not end is named, and cannot keep the summary back."""

from __future__ import annotations

import asyncio

import pytest

from tests.soak.ending import Doing, end_parts


async def test_a_part_that_hangs_is_named_with_what_it_does() -> None:
    """It is cancelled after the patience, and the words say what it was doing."""
    doing = Doing()

    async def hang() -> None:
        with doing.note("model.load of a"):
            await asyncio.Event().wait()

    task = asyncio.create_task(hang())
    await asyncio.sleep(0)
    wrong = await end_parts({"the changes": (task, doing)}, 0.0)
    assert wrong == ["the changes: no end within 0 s: model.load of a, for 0 s"]
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not doing


async def test_parts_that_end_are_fine_and_failures_are_told() -> None:
    """Nothing is wrong with a part that ends; of one that fails the error is told, and does not hide the others."""

    async def end() -> None:
        await asyncio.sleep(0)

    async def fail() -> None:
        raise OSError("no more files")

    parts = {"good": (asyncio.create_task(end()), Doing()), "bad": (asyncio.create_task(fail()), Doing())}
    assert await end_parts(parts, 60.0) == ["bad: failed with OSError('no more files')"]
