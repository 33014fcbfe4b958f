"""Loads that are in progress together: which of them the device works on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from mlxd.engine.device import Device
from tests.engine.bench import WriteModel, load_spec
from tests.engine.conftest import LIMITS, SCHEDULING
from tests.support.sequence import prepare, start


async def test_threads_tell_on_which_load_they_work(write_model: WriteModel) -> None:
    """Of loads side by side the device names the one whose slice it does, and none while it only generates."""
    folders: list[str] = []
    slices: list[str] = []

    @contextlib.contextmanager
    def working_on(model_id: str, *, on_device: bool) -> Iterator[None]:
        told = slices if on_device else folders
        told.append(f"begin {model_id}")
        yield
        told.append(f"end {model_id}")

    device = Device(asyncio.get_running_loop(), LIMITS, SCHEDULING, working_on=working_on)
    specs = [load_spec(write_model(seed=seed), model_id=name) for seed, name in enumerate("ab")]
    engine, _ = await asyncio.gather(*(device.load(spec, lambda done, total: None) for spec in specs))
    assert sorted(folders) == ["begin a", "begin b", "end a", "end b"]
    assert [begin.replace("begin", "end") for begin in slices[::2]] == slices[1::2]
    assert {"begin a", "begin b"} == set(slices[::2])

    told = len(slices)
    assert (await start(engine, await prepare(engine)).ended()).text()
    assert len(slices) == told
    await device.close()
