"""Tiny models, a device, and text models that are stepped by hand."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxd.engine.base import BackendLimits, Engine, LoadSpec, SchedulingParams
from mlxd.engine.device import Device
from tests.support.tiny_model import write_tiny_model

LIMITS = BackendLimits(memory_bytes=4_000_000_000, cache_bytes=100_000_000)
SCHEDULING = SchedulingParams(prefill_step_tokens=2048, target_gap_ms=30)

WriteModel = Callable[..., Path]


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


def load_spec(path: Path, **changes: object) -> LoadSpec:
    """Return a spec with a prompt cache of 100 MB."""
    values = {"model_id": "tiny", "path": path, "context_length": None, "prompt_cache_limit_bytes": 100_000_000}
    return LoadSpec(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
async def engine(device: Device, write_model: WriteModel) -> Engine:
    """The tiny model of seed 0, loaded."""
    return await device.load(load_spec(write_model()), lambda done, total: None)
