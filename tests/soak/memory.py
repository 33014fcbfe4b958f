"""The resident memory of the daemon over the time of a soak."""

from __future__ import annotations

import asyncio
from statistics import median

from tests.bench.process import read_rss_bytes

# Of the whole time: by then each model was loaded many times and every path has run.
WARM_UP = 0.4
# Between the first and the last third of what follows the warm-up. The allocator's arenas move by some MB either way; a
# leaked model, request or KV of a row at every tenth request would be ten times as much in ten minutes.
MOST_GROWTH_BYTES = 12_000_000
_SAMPLE_S = 1.0


class Memory:
    """Resident memory of a process over time."""

    def __init__(self, pid: int) -> None:
        """Take the process; nothing is sampled yet."""
        self._pid = pid
        self.samples: list[int] = []

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            self.samples.append(await asyncio.to_thread(read_rss_bytes, self._pid))
            await asyncio.sleep(_SAMPLE_S)

    @property
    def failures(self) -> list[str]:
        """Say by how much it grew, if that is too much."""
        early_bytes, late_bytes = self._medians_bytes()
        if late_bytes - early_bytes <= MOST_GROWTH_BYTES:
            return []
        return [f"memory grew by {(late_bytes - early_bytes) / 1e6:.1f} MB after the warm-up"]

    def __str__(self) -> str:
        """Say what it was."""
        early_bytes, late_bytes = self._medians_bytes()
        return (
            f"RSS after the warm-up: {early_bytes / 1e6:.1f} MB, at the end: {late_bytes / 1e6:.1f} MB"
            f" (bound: +{MOST_GROWTH_BYTES / 1e6:.0f} MB), at most {max(self.samples, default=0) / 1e6:.1f} MB,"
            f" {len(self.samples)} samples"
        )

    def _medians_bytes(self) -> tuple[float, float]:
        """Return the medians of the first and of the last third after the warm-up; zeros of too few samples."""
        warm = self.samples[int(len(self.samples) * WARM_UP) :]
        third = len(warm) // 3
        return (median(warm[:third]), median(warm[-third:])) if third else (0.0, 0.0)
