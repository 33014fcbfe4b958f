"""Asks `/ready` and for the models as a client, between two looks at the status, again and again."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import aiohttp

from mlxctl.client import Client
from mlxctl.status import find_problems
from tests.soak.ending import Doing

_PATIENCE_S = 60.0
_PAUSE_S = 1.0
_KEPT_FAILURES = 20


class Probe:
    """A service manager that believes `/ready`, an operator with `status --check`, and a client that lists models."""

    def __init__(self, url: str, socket: Path, models: list[str]) -> None:
        """Take the daemon's address, its socket, and the models that it always has."""
        self._url = url
        self._socket = socket
        self._models = set(models)
        self.ends: Counter[str] = Counter()
        self.failures: list[str] = []
        self.doing = Doing()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until *stop*; what the status says before and after must be what clients see in between."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_PATIENCE_S)) as session:
            while not stop.is_set():
                with self.doing.note("status, /ready, /v1/models, status"):
                    await self._look(session)
                await asyncio.gather(asyncio.wait_for(stop.wait(), _PAUSE_S), return_exceptions=True)

    async def _look(self, session: aiohttp.ClientSession) -> None:
        before = await asyncio.to_thread(self._read_status)
        async with session.get(self._url.removesuffix("/v1") + "/ready") as response:
            is_ready = response.status == 200
        async with session.get(f"{self._url}/models") as response:
            listed = {model["id"] for model in (await response.json())["data"]} if response.status == 200 else set()
        after = await asyncio.to_thread(self._read_status)
        if before == after:
            self.ends["ready" if is_ready else "not ready"] += 1
            said_ready, has_problems = before
            if said_ready != is_ready:
                self._fail(f"/ready was {is_ready}, and status said {said_ready} before and after")
            if not is_ready and not has_problems:
                self._fail("/ready was False, and status --check found nothing before and after")
        else:
            self.ends["changed meanwhile"] += 1
        if not listed >= self._models:
            self._fail(f"/v1/models had {sorted(listed)}")

    def _read_status(self) -> tuple[bool, bool]:
        """Return whether the daemon is ready, and whether `status --check` finds anything."""
        with Client(self._socket, _PATIENCE_S) as client:
            status = client.request("status").result
        return bool(status["ready"]), any(find_problems(status))

    def _fail(self, words: str) -> None:
        if len(self.failures) < _KEPT_FAILURES:
            self.failures.append(words)
