"""Bytes of many files, fetched by several threads, as one progress."""

from __future__ import annotations

import threading
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

from mlxd.download.progress import Reporter


class Meter:
    """Counts towards the total of a pull."""

    def __init__(self, reporter: Reporter, total_bytes: int, done_bytes: int) -> None:
        """Start with *done_bytes* of *total_bytes* that are on disk already."""
        self._reporter = reporter
        self._total_bytes = total_bytes
        self._done_bytes = done_bytes
        self._lock = threading.Lock()
        self.add(0)

    def add(self, n_bytes: int) -> None:
        """Count *n_bytes* more, which is less than 0 when bytes were thrown away."""
        with self._lock:
            self._done_bytes += n_bytes
            self._reporter.progress("downloading", min(self._done_bytes, self._total_bytes), self._total_bytes)


def file_bar(meter: Meter) -> type[tqdm]:
    """Return the class of bar that the client is given for one file; it shows nothing and feeds *meter*."""

    class FileBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            meter.add(int(options.get("initial") or 0))

        def update(self, n: float | None = 1) -> None:
            meter.add(int(n or 0))

    return FileBar


def snapshot_bar(meter: Meter) -> type[tqdm]:
    """Return the class of bar for a whole snapshot.

    The client makes several: of files, of bytes received and of bytes written. The two of bytes count the same, so what
    is furthest counts.
    """
    furthest_bytes = 0
    lock = threading.Lock()

    class SnapshotBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self._counts = options.get("unit") == "B"
            self._own_bytes = 0

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest_bytes
            if not self._counts:
                return
            with lock:
                self._own_bytes += int(n or 0)
                more = self._own_bytes - furthest_bytes
                if more > 0:
                    furthest_bytes = self._own_bytes
                    meter.add(more)

    return SnapshotBar
