"""What a daemon that dies leaves for the next one, on a real disk."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
from pathlib import Path

import pytest

from mlxd.catalog import Catalog, ModelEntry
from mlxd.config.file import ConfigFile, SystemCalls
from mlxd.crash import CrashLog, NotedBackend
from mlxd.engine.base import LoadSpec
from mlxd.protocol.errors import LoadFailed
from tests.support.clock import FakeClock
from tests.support.fake_backend import FakeBackend
from tests.support.model_folder import write_model, write_safetensors


class Boots:
    """Daemons that run one after the other in one home, with a clock in unix seconds."""

    def __init__(self, home: Path) -> None:
        self.path = home / "state.json"
        self.catalog = Catalog([home / "models"])
        self.now_s = 1_000_000.0
        self.number = 0
        for name in ("a", "b"):
            write_model(home / "models" / name)
        self.catalog.scan()

    async def boot(self, calls: SystemCalls | None = None) -> CrashLog:
        """Start the next daemon; the one before has died unless it was closed."""
        self.number += 1
        log = CrashLog(ConfigFile(self.path, calls), f"boot-{self.number}", lambda: self.now_s)
        await log.open()
        return log

    async def die_loading(self, *model_ids: str) -> None:
        """Let a daemon begin loads and die in them."""
        log = await self.boot()
        for model_id in model_ids:
            await log.begin_load(self.entry(model_id))

    def entry(self, model_id: str) -> ModelEntry:
        """Return a model as the disk has it now."""
        self.catalog.scan()
        return self.catalog.get(model_id)


@pytest.fixture
def boots(tmp_path: Path) -> Boots:
    """Return a home with the models a and b, in which no daemon has run."""
    return Boots(tmp_path)


async def test_an_orderly_end_leaves_nothing(boots: Boots) -> None:
    """A daemon that closes, even in the middle of a load, is no crash and blames no model."""
    log = await boots.boot()
    await log.begin_load(boots.entry("a"))
    await log.close()

    assert (await boots.boot()).status() == {"last_hour": 0, "last_at_ms": None, "loads": []}


async def test_a_load_that_kills_twice_in_a_row_is_refused(boots: Boots) -> None:
    """After the first time it is tried once more; after the second the cause is told, and other models load."""
    await boots.die_loading("a")
    await boots.die_loading("a")
    log = await boots.boot()

    refusal = log.refusal(boots.entry("a"))
    assert isinstance(refusal, LoadFailed)
    assert "2 times in a row" in refusal.message
    assert "mlxctl model reset a" in str(refusal.hint)
    with pytest.raises(LoadFailed):
        await log.begin_load(boots.entry("a"))
    await log.begin_load(boots.entry("b"))
    assert log.status() == {
        "last_hour": 2,
        "last_at_ms": 1_000_000_000,
        "loads": [{"model": "a", "times": 2, "at_ms": 1_000_000_000}],
    }


async def test_a_load_that_ended_between_two_crashes_is_not_in_a_row(boots: Boots) -> None:
    """A model that has loaded, or failed in an orderly way, is counted from one again."""
    await boots.die_loading("a")
    log = await boots.boot()
    await log.begin_load(boots.entry("a"))
    log.end_load("a")
    await log.begin_load(boots.entry("a"))

    assert (await boots.boot()).refusal(boots.entry("a")) is None


async def test_other_files_are_another_model(boots: Boots, tmp_path: Path) -> None:
    """Weights that were fetched again are tried, and count from one."""
    await boots.die_loading("a")
    await boots.die_loading("a")
    weights = tmp_path / "models" / "a" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert (await boots.boot()).refusal(boots.entry("a")) is None
    await boots.die_loading("a")
    assert (await boots.boot()).refusal(boots.entry("a")) is None

    write_safetensors(tmp_path / "models" / "a" / "model-more.safetensors")
    await boots.die_loading("a")
    assert (await boots.boot()).refusal(boots.entry("a")) is None


async def test_a_reset_outlives_the_daemon(boots: Boots) -> None:
    """What `reset` has forgotten is forgotten on the disk, before it returns."""
    await boots.die_loading("a")
    await boots.die_loading("a")
    log = await boots.boot()
    assert await log.reset("a")
    assert not await log.reset("a")

    assert (await boots.boot()).refusal(boots.entry("a")) is None


async def test_crashes_are_counted_for_an_hour(boots: Boots) -> None:
    """Each unclean end counts, an old one is not shown, and the file does not grow without end."""
    for _ in range(120):
        await boots.die_loading()
    assert (await boots.boot()).status()["last_hour"] == 101
    assert boots.path.stat().st_size < 4000
    boots.now_s += 3601
    log = await boots.boot()
    assert log.status()["last_hour"] == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"boot_id": null, "loading": 3}', "\xff"])
async def test_a_file_that_cannot_be_read_is_begun_anew(
    boots: Boots, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """Whatever stands in it, the daemon starts, says so, and keeps notes from then on."""
    boots.path.write_text(text, encoding="latin-1")
    log = await boots.boot()

    assert "is begun anew" in caplog.text
    assert log.status()["last_hour"] == 0
    await log.begin_load(boots.entry("a"))
    assert (await boots.boot()).status()["loads"][0]["model"] == "a"


async def test_a_full_disk_stops_no_load(boots: Boots, caplog: pytest.LogCaptureFixture) -> None:
    """A note that cannot be written is told in the log; the model loads all the same."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = await boots.boot(dataclasses.replace(SystemCalls(), write=fail))
    with caplog.at_level(logging.WARNING):
        await log.begin_load(boots.entry("a"))
        log.end_load("a")
        await log.close()

    assert "state.json cannot be written: No space left on device" in caplog.text
    assert not boots.path.exists()


async def test_loads_side_by_side_are_all_noted(boots: Boots) -> None:
    """Two loads that begin at once are both on the disk when they may begin; both are suspects."""
    log = await boots.boot()
    await asyncio.gather(log.begin_load(boots.entry("a")), log.begin_load(boots.entry("b")))

    assert [load["model"] for load in (await boots.boot()).status()["loads"]] == ["a", "b"]


@pytest.mark.parametrize("error", [None, LoadFailed("bad magic")])
async def test_the_backend_notes_each_load_until_its_end(boots: Boots, error: LoadFailed | None) -> None:
    """The note is on the disk while the model loads and gone when it has ended, well or not."""
    clock = FakeClock()
    inner = FakeBackend(clock, load_s=1)
    log = await boots.boot()
    backend = NotedBackend(inner, log, boots.catalog.get)
    if error is not None:
        inner.fail_load("a", error)
    spec = LoadSpec("a", boots.entry("a").path, context_length=None, prompt_cache_limit_bytes=0)
    load = asyncio.ensure_future(backend.load(spec, lambda done, total: None))
    async with asyncio.timeout(30):
        while clock.next_s is None:  # noqa: ASYNC110  (the note is on its way to the disk)
            await asyncio.sleep(0)
        assert '"a"' in boots.path.read_text()
        while not load.done():
            if clock.next_s is not None:
                clock.run_next()
            await asyncio.sleep(0)
    assert load.exception() is error
    await log.close()
    assert '"a"' not in boots.path.read_text()
    await backend.close()
