"""Tiny models, a device, and text models that are stepped by hand."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlxd.engine.base import BackendLimits, Engine, SchedulingParams
from mlxd.engine.device import Device
from mlxd.engine.prompt_cache import PromptCache
from tests.engine.bench import Bench, FakeBench, RealBench, WriteModel, load_spec
from tests.support.clock import FakeClock
from tests.support.stored_kv import MIXED, PLAIN, STATE_BYTES, TOKEN_BYTES
from tests.support.tiny_model import write_tiny_model

LIMITS = BackendLimits(memory_bytes=4_000_000_000, cache_bytes=100_000_000)
SCHEDULING = SchedulingParams(prefill_step_tokens=2048, target_gap_ms=30)


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> WriteModel:
    """Write a tiny model once per set of options."""
    written: dict[str, Path] = {}

    def write(**options: int | bool) -> Path:
        name = repr(sorted(options.items()))
        if name not in written:
            written[name] = write_tiny_model(tmp_path_factory.mktemp("model"), **options)  # type: ignore[arg-type]
        return written[name]

    return write


@pytest.fixture
def baseline_bytes() -> int:
    """What MLX holds already: models that fixtures of other tests keep."""
    gc.collect()
    return mx.get_active_memory()


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    """A running device."""
    device = Device(asyncio.get_running_loop(), LIMITS, SCHEDULING)
    yield device
    await device.close()


@pytest.fixture
async def engine(device: Device, write_model: WriteModel) -> Engine:
    """The tiny model of seed 0, loaded."""
    return await device.load(load_spec(write_model()), lambda done, total: None)


@pytest.fixture(params=["fake", "real"])
async def bench(request: pytest.FixtureRequest, write_model: WriteModel, tmp_path: Path) -> AsyncIterator[Bench]:
    """A backend of either kind."""
    if request.param == "fake":
        fake = FakeBench()
        yield fake
        await fake.backend.close()
    else:
        device = Device(asyncio.get_running_loop(), LIMITS, SCHEDULING)
        yield RealBench(device, write_model, tmp_path)
        await device.close()


@pytest.fixture
async def loaded(bench: Bench) -> Engine:
    """A loaded model of either kind of backend."""
    return await bench.wait(bench.backend.load(bench.spec(), lambda done, total: None))


@pytest.fixture
def clock() -> FakeClock:
    """Time that does not pass by itself."""
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> PromptCache:
    """A prompt cache of a plain model, with room for 20 tokens."""
    return PromptCache(PLAIN, 20 * TOKEN_BYTES, clock.now)


@pytest.fixture
def mixed(clock: FakeClock) -> PromptCache:
    """A prompt cache of a model with a state, with room for five checkpoints."""
    return PromptCache(MIXED, 5 * STATE_BYTES + 30 * TOKEN_BYTES, clock.now)
