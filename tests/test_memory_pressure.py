"""When the system counts as short of memory."""

from __future__ import annotations

import asyncio

import pytest

from mlxd.memory_pressure import judge_darwin, judge_linux, read_memory_pressure, watch_memory_pressure

STALLS = "some avg10=40.00 avg60=1.00 avg300=0.00 total=5\nfull avg10={} avg60=0.50 avg300=0.00 total=3\n"


def meminfo(available_kb: int) -> str:
    """Return the beginning of a /proc/meminfo of a machine with 16 GB."""
    return f"MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable: {available_kb} kB\nBuffers: 1 kB\n"


@pytest.mark.parametrize(("level", "is_critical"), [(None, False), (1, False), (2, False), (4, True)])
def test_macos_says_it_itself(level: int | None, is_critical: bool) -> None:
    """Only the level critical counts; a warning is everyday life on a laptop."""
    assert (judge_darwin(level) is not None) is is_critical


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
    judged = judge_linux(meminfo(available_kb), STALLS.format(stalled))
    assert judged == says if says is None else judged is not None and judged.endswith(says)


@pytest.mark.parametrize("text", ["", "MemTotal: 0 kB\nMemAvailable: 0 kB\n", "MemTotal: 16000000 kB\n"])
def test_what_cannot_be_read_is_not_critical(text: str) -> None:
    """A kernel that does not say what is available never stops loads."""
    assert judge_linux(text, "") is None


def test_this_machine_can_be_asked() -> None:
    """Asking is cheap, needs no privilege, and gives words or nothing."""
    answer = read_memory_pressure()
    assert answer is None or answer.startswith(("the system", "macOS"))


async def test_samples_are_reported_until_the_watch_is_cancelled() -> None:
    """Each sample goes to the listener, good ones too."""
    samples = iter(["short", None, "short again"])
    heard: list[str | None] = []

    def report(sample: str | None) -> None:
        heard.append(sample)
        if len(heard) == 3:
            watching.cancel()

    watching = asyncio.ensure_future(watch_memory_pressure(report, read=lambda: next(samples), sample_s=0))
    with pytest.raises(asyncio.CancelledError):
        await watching

    assert heard == ["short", None, "short again"]
