"""A backend of either kind, the fake one and the real one, and how its time passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

from mlxd.engine.base import Backend, LoadSpec
from mlxd.engine.device import Device
from mlxd.protocol.errors import LoadFailed
from tests.support.clock import FakeClock
from tests.support.fake_backend import FakeBackend

T = TypeVar("T")
WriteModel = Callable[..., Path]


def load_spec(path: Path, **changes: object) -> LoadSpec:
    """Return a spec with a prompt cache of 100 MB."""
    values = {"model_id": "tiny", "path": path, "context_length": None, "prompt_cache_limit_bytes": 100_000_000}
    return LoadSpec(**(values | changes))  # type: ignore[arg-type]


class Bench(Protocol):
    """A backend and how its time passes."""

    backend: Backend

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Let time pass until *awaitable* is done."""

    def spec(self, name: str = "a") -> LoadSpec:
        """Return a model that can be loaded."""

    def broken_spec(self) -> LoadSpec:
        """Return a model that cannot."""


class RealBench:
    """The device thread with tiny models."""

    def __init__(self, device: Device, write_model: WriteModel, tmp_path: Path) -> None:
        self.backend: Backend = device
        self._write_model = write_model
        self._tmp_path = tmp_path

    async def wait(self, awaitable: Awaitable[T]) -> T:
        return await awaitable

    def spec(self, name: str = "a") -> LoadSpec:
        return load_spec(self._write_model(seed=ord(name)), model_id=name)

    def broken_spec(self) -> LoadSpec:
        return load_spec(self._tmp_path / "missing", model_id="broken")


class FakeBench:
    """The fake, whose clock moves while somebody waits."""

    def __init__(self) -> None:
        self._clock = FakeClock()
        self.fake = FakeBackend(self._clock)
        self.backend: Backend = self.fake

    async def wait(self, awaitable: Awaitable[T]) -> T:
        task = asyncio.ensure_future(awaitable)
        while not task.done():
            for _ in range(5):
                await asyncio.sleep(0)
            if not task.done() and self._clock.next_s is not None:
                self._clock.run_next()
        return await task

    def spec(self, name: str = "a") -> LoadSpec:
        return load_spec(Path("/nowhere"), model_id=name)

    def broken_spec(self) -> LoadSpec:
        self.fake.fail_load("broken", LoadFailed("model 'broken' cannot be loaded"))
        return load_spec(Path("/nowhere"), model_id="broken")
