"""All that is done to the daemon at once, for a time: traffic, changes, bad neighbors, and looks at what it says."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

from mlxctl.client import Client
from tests.soak.ending import Doing, end_parts
from tests.soak.exchange import HANG_S, Case
from tests.soak.memory import Memory
from tests.soak.neighbor import Neighbors
from tests.soak.probe import Probe
from tests.soak.quiet import wait_quiet
from tests.soak.steering import COMMENT, Steering
from tests.soak.traffic import Traffic, make_cloud_cases
from tests.support.daemon import RealDaemon

# A request that was begun ends within HANG_S, and a bad neighbor looks for its folder before and after one.
_END_S = HANG_S + 60.0
_PATIENCE_S = 60.0


class Load:
    """The parts of it, and what they have found."""

    def __init__(
        self, daemon: RealDaemon, url: str, upstream_url: str, known: list[Case], neighbors: Neighbors, seed: int
    ) -> None:
        """Take a running daemon, the questions whose answers are known, and its bad neighbors."""
        assert daemon.process is not None
        models = sorted({case.model for case in known})
        self._socket = daemon.home / "mlxd.sock"
        self._config = daemon.config
        self._seed = seed
        self.traffic = Traffic(url, [*known, *make_cloud_cases()])
        self.steering = Steering(self._socket, daemon.config, models, upstream_url, seed)
        self._neighbors = neighbors
        self._probe = Probe(url, self._socket, models)
        self._memory = Memory(daemon.process.pid)

    async def run(self, seconds: float, workers: int) -> list[str]:
        """Go on for so long, or until a part fails; then end all, and return what has failed or does not end."""
        stop, leaving = threading.Event(), asyncio.Event()
        begin = asyncio.create_task
        parts: dict[str, tuple[asyncio.Task[None], Doing]] = {
            "the requests": (begin(self.traffic.run(self._seed, workers)), self.traffic.doing),
            "the changes": (begin(asyncio.to_thread(self.steering.run, stop)), self.steering.doing),
            "the bad neighbors": (begin(self._neighbors.run(leaving)), self._neighbors.doing),
            "the probes": (begin(self._probe.run(leaving)), self._probe.doing),
        }
        watching = begin(self._memory.watch())
        try:
            tasks = [task for task, _ in parts.values()]
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.set()  # the thread of the changes is not cancelled with its task
        leaving.set()
        self.traffic.is_over = True
        wrong = await end_parts(parts, _END_S)
        watching.cancel()
        return wrong

    @property
    def failures(self) -> list[str]:
        """What is wrong."""
        found = [
            *self.traffic.failures,
            *self.steering.failures,
            *self._neighbors.failures,
            *self._probe.failures,
            *self._memory.failures,
        ]
        if not self.traffic.ends["streamed"] or not self.traffic.ends["whole"]:
            found.append("no answer was compared")
        if self.traffic.n_failures > len(self.traffic.failures):
            found.append(f"{self.traffic.n_failures - len(self.traffic.failures)} more requests")
        if COMMENT not in self._config.read_text():
            found.append("a comment in config.toml was lost")
        return found

    @property
    def doing(self) -> list[str]:
        """What is done to the daemon at this moment."""
        parts = (self.traffic, self.steering, self._neighbors, self._probe)
        return [str(part.doing) for part in parts if part.doing]

    def calm(self) -> list[str]:
        """Undo all changes; return what does not become quiet. Blocks."""
        with Client(self._socket, _PATIENCE_S) as client:
            self.steering.calm(client)
            return wait_quiet(client)

    def summary(self) -> list[str]:
        """Say what happened."""
        longest_s = self._neighbors.longest_s
        return [
            _counts("requests", self.traffic.ends),
            _counts("changes", self.steering.done),
            _counts("refused changes", self.steering.refused),
            _counts("bad neighbors", self._neighbors.ends),
            _counts("looks at /ready and the status", self._probe.ends),
            f"longest request: {self.traffic.longest_s:.1f} s; longest of a bad neighbor: {longest_s:.1f} s",
            str(self._memory),
        ]


def _counts(what: str, counts: Counter[str]) -> str:
    return f"{counts.total()} {what}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
