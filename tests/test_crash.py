"""What a daemon that dies leaves for the next one, on a real disk."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from mlxd.atomic_file import AtomicFile, SystemCalls
from mlxd.catalog import Catalog, ModelEntry
from mlxd.crash import CrashLog, LoadMarks
from mlxd.protocol.errors import LoadFailed
from tests.support.model_folder import write_model, write_safetensors


class Boots:
    """Daemons that run one after the other in one home, with a clock in unix seconds."""

    def __init__(self, home: Path) -> None:
        self.path = home / "state.json"
        self.catalog = Catalog([home / "models"])
        self.now_s = 1_000_000.0
        self.number = 0
        self.unfinished: list[AbstractContextManager[None]] = []
        for name in ("a", "b"):
            write_model(home / "models" / name)
        self.catalog.scan()

    async def boot(self, calls: SystemCalls | None = None) -> CrashLog:
        """Start the next daemon; the one before has died unless it was closed."""
        self.number += 1
        marks = LoadMarks(self.path.with_name("loading.json"), f"boot-{self.number}")
        log = CrashLog(AtomicFile(self.path, calls), marks, lambda: self.now_s)
        await log.open()
        return log

    async def die_loading(self, *model_ids: str, waiting: Iterable[str] = (), reading: Iterable[str] = ()) -> None:
        """Let a daemon begin loads and die: at work on some, while others wait or their folders are read."""
        log = await self.boot()
        for model_id in (*model_ids, *waiting, *reading):
            await log.begin_load(self.entry(model_id))
        for model_id in (*model_ids, *reading):
            self.work_on(log, model_id, on_device=model_id in model_ids)

    def work_on(self, log: CrashLog, model_id: str, *, on_device: bool = True) -> None:
        """Let a thread be at work on a load until the daemon dies."""
        work = log.marks.working_on(model_id, on_device=on_device)
        work.__enter__()
        self.unfinished.append(work)

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
    boots.work_on(log, "a")

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
    boots.work_on(log, "a")
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


def blamed(log: CrashLog) -> list[str]:
    """Return the models on which a death is blamed."""
    return [load["model"] for load in log.status()["loads"]]


async def test_loads_side_by_side_are_all_noted(boots: Boots) -> None:
    """Two loads that begin at once are both on the disk when they may begin."""
    log = await boots.boot()
    await asyncio.gather(log.begin_load(boots.entry("a")), log.begin_load(boots.entry("b")))
    boots.work_on(log, "a", on_device=False)
    boots.work_on(log, "b", on_device=False)

    assert blamed(await boots.boot()) == ["a", "b"]


async def test_a_load_that_waits_for_its_turn_is_not_to_blame(boots: Boots) -> None:
    """Only the load that the device was at work on is a suspect; without one nobody is, though loads were begun."""
    await boots.die_loading("a", waiting=["b"])
    await boots.die_loading("a", waiting=["b"])
    log = await boots.boot()
    assert blamed(log) == ["a"]
    assert log.refusal(boots.entry("b")) is None
    assert log.refusal(boots.entry("a")) is not None

    await log.reset("a")
    await boots.die_loading(waiting=["a", "b"])
    assert blamed(await boots.boot()) == []


async def test_a_folder_that_is_being_read_counts_when_the_device_is_at_work_on_no_load(boots: Boots) -> None:
    """A disk that hangs at every start is not blamed for another model; a tokenizer that kills the daemon is."""
    await boots.die_loading("a", reading=["b"])
    assert blamed(await boots.boot()) == ["a"]

    await boots.die_loading(reading=["b"], waiting=["a"])
    assert "b" in blamed(await boots.boot())


async def test_work_that_is_over_is_no_mark(boots: Boots) -> None:
    """Between two slices nothing is marked, and what a shorter mark leaves of a longer one is not read."""
    log = await boots.boot()
    for model_id in ("a", "b"):
        await log.begin_load(boots.entry(model_id))
    with log.marks.working_on("a", on_device=True):
        boots.work_on(log, "b", on_device=False)

    assert blamed(await boots.boot()) == ["b"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"boot_id": "boot-1"}', '{"boot_id": "boot-0", "on_device": ["a"], "reading": []}']
)
async def test_marks_of_another_run_or_that_are_cut_off_blame_nobody(boots: Boots, text: str) -> None:
    """After a power cut the marks may be old, or half there: the daemon starts and holds nothing against a model."""
    await boots.die_loading("a")
    boots.path.with_name("loading.json").write_text(text)

    log = await boots.boot()
    assert blamed(log) == []
    assert log.status()["last_hour"] == 1


async def test_marks_that_cannot_be_written_stop_nothing(boots: Boots, caplog: pytest.LogCaptureFixture) -> None:
    """A folder in the place of the file is told in the log, and loads go on without marks."""
    boots.path.with_name("loading.json").mkdir()
    log = await boots.boot()
    with log.marks.working_on("a", on_device=True):
        assert "loading.json cannot be written: Is a directory" in caplog.text


@pytest.mark.parametrize("error", [None, LoadFailed("bad magic")])
async def test_each_load_is_noted_until_its_end(boots: Boots, error: LoadFailed | None) -> None:
    """The note is on the disk while the model loads and gone when it has ended, well or not."""
    log = await boots.boot()
    with pytest.raises(LoadFailed) if error else nullcontext():
        async with log.noted(boots.entry("a")):
            assert '"a"' in boots.path.read_text()
            if error is not None:
                raise error
    await log.close()
    assert '"a"' not in boots.path.read_text()
