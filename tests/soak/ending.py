"""The end of the soak's parts: within a bounded time, and by name where one does not end or has failed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator, Mapping


class Doing:
    """What a part of the soak does at this moment, for when it does not end."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._numbers = itertools.count()
        self._begun: dict[int, tuple[str, float]] = {}

    @contextlib.contextmanager
    def note(self, words: str) -> Iterator[None]:
        """Count *words* among what is done, until the block is left."""
        number = next(self._numbers)
        self._begun[number] = words, time.monotonic()
        try:
            yield
        finally:
            del self._begun[number]

    def __bool__(self) -> bool:
        """Whether anything is done."""
        return bool(self._begun)

    def __str__(self) -> str:
        """Return all of it in words."""
        now_s = time.monotonic()
        begun = list(self._begun.values())  # at once: a part may run on a thread of its own
        return "; ".join(f"{words}, for {now_s - since_s:.0f} s" for words, since_s in begun) or "nothing that is noted"


async def end_parts(parts: Mapping[str, tuple[asyncio.Task[None], Doing]], patience_s: float) -> list[str]:
    """Wait for the parts, which were told to end; return those that failed, and those that hang and at what.

    Those that hang are cancelled.
    """
    tasks = [task for task, _ in parts.values()]
    if tasks:
        await asyncio.wait(tasks, timeout=patience_s)
    wrong = []
    for name, (task, doing) in parts.items():
        if not task.done():
            wrong.append(f"{name}: no end within {patience_s:.0f} s: {doing}")
            task.cancel()
        elif task.cancelled():
            wrong.append(f"{name}: cancelled")
        elif (error := task.exception()) is not None:
            wrong.append(f"{name}: failed with {error!r}")
    return wrong
