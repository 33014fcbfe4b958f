"""When the system counts as short of memory."""

from __future__ import annotations

import asyncio

import pytest

from mlxd.memory_pressure import MemorySample, judge_darwin, judge_linux, read_memory_pressure, watch_memory_pressure

STALLS = "some avg10=40.00 avg60=1.00 avg300=0.00 total=5\nfull avg10={} avg60=0.50 avg300=0.00 total=3\n"


def meminfo(available_kb: int) -> str:
    """Return the beginning of a /proc/meminfo of a machine with 16 GB."""
    return f"MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable: {available_kb} kB\nBuffers: 1 kB\n"


@pytest.mark.parametrize(("level", "is_critical"), [(None, False), (1, False), (2, False), (4, True)])
def test_macos_says_it_itself(level: int | None, is_critical: bool) -> None:
    """Only the level critical counts; a warning is everyday life on a laptop."""
    assert (judge_darwin(level, 40, 16_000_000_000).shortage is not None) is is_critical


def test_what_the_system_can_spare_is_what_is_available_beyond_the_critical_rest() -> None:
    """Both systems keep 3 % for themselves; where next to nothing is available, nothing can be spared."""
    gigabyte = 1_000_000_000
    assert judge_darwin(1, 40, 16 * gigabyte).spare_bytes == 5.92 * gigabyte
    assert judge_darwin(4, 2, 16 * gigabyte).spare_bytes == 0
    assert judge_linux(meminfo(6_400_000), "").spare_bytes == 1024 * (6_400_000 - 480_000)
    assert judge_linux(meminfo(300_000), "").spare_bytes == 0


@pytest.mark.parametrize(("percent", "total_bytes"), [(None, 16_000_000_000), (40, None)])
def test_what_macos_does_not_say_is_not_made_up(percent: int | None, total_bytes: int | None) -> None:
    """Without the share or the total, the level alone counts."""
    assert judge_darwin(1, percent, total_bytes) == MemorySample()


@pytest.mark.parametrize(
    ("available_kb", "stalled", "says"),
    [
        (8_000_000, "0.00", None),
        (8_000_000, "90.00", None),  # a neighbour in its own group, over its own limit
        (1_500_000, "2.00", None),
        (1_500_000, "25.00", "9.4 % of its memory left, and stands still for memory 25 %"),
        (300_000, "0.00", "1.9 % of its memory left"),
    ],
)
def test_linux_is_judged_by_what_is_left_and_by_stalls(available_kb: int, stalled: str, says: str | None) -> None:
    """Little left is critical where programs stand still for it; next to nothing left is critical by itself."""
    judged = judge_linux(meminfo(available_kb), STALLS.format(stalled)).shortage
    assert judged == says if says is None else judged is not None and judged.endswith(says)


@pytest.mark.parametrize("text", ["", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "MemTotal: 16000000 kB\n"])
def test_what_cannot_be_read_is_not_critical(text: str) -> None:
    """A kernel that does not say what is available never stops loads."""
    assert judge_linux(text, "") == MemorySample()


def test_this_machine_can_be_asked() -> None:
    """Asking is cheap, needs no privilege, and gives words or nothing."""
    sample = read_memory_pressure()
    assert sample.shortage is None or sample.shortage.startswith(("the system", "macOS"))
    assert sample.spare_bytes is None or sample.spare_bytes >= 0


async def test_samples_are_reported_until_the_watch_is_cancelled() -> None:
    """Each sample goes to the listener, good ones too."""
    samples = [MemorySample("short", 0), MemorySample(None, 5), MemorySample("short again")]
    left = iter(samples)
    heard: list[MemorySample] = []

    def report(sample: MemorySample) -> None:
        heard.append(sample)
        if len(heard) == 3:
            watching.cancel()

    watching = asyncio.ensure_future(watch_memory_pressure(report, read=lambda: next(left), sample_s=0))
    with pytest.raises(asyncio.CancelledError):
        await watching

    assert heard == samples
