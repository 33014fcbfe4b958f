"""A served pool on a fake device and on the real one, with the same tiny models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mlxd.catalog import Catalog
from mlxd.clock import LoopClock
from mlxd.engine.base import Backend, BackendLimits, SchedulingParams
from mlxd.engine.device import Device
from mlxd.pool.pool import Pool
from tests.support.fake_backend import FakeBackend
from tests.support.http_server import Served, serving, settings_of
from tests.support.templates import TEMPLATES
from tests.support.tiny_model import write_tiny_model

ServeModels = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture(scope="session")
def models_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `tiny`, `thinker`, `caller` (calls tools) and `org/other`."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_model(root / "tiny", seed=1)
    write_tiny_model(root / "thinker", seed=3, open_thinking=True)
    write_tiny_model(root / "caller", seed=4, tools=True)
    (root / "org").mkdir()
    write_tiny_model(root / "org" / "other", seed=2)
    return root


@pytest.fixture(params=["fake", "device"])
def serve_models(request: pytest.FixtureRequest, models_root: Path) -> ServeModels:
    """Return a context manager that serves these models by a real pool, on the fake device and on MLX."""

    @asynccontextmanager
    async def serve(**document: Any) -> AsyncIterator[Served]:
        async with _serve(models_root, document, is_fake=request.param == "fake") as served:
            yield served

    return serve


@asynccontextmanager
async def serve_templates(root: Path, *names: str, context: int) -> AsyncIterator[Served]:
    """Serve a tiny model that thinks with each of these templates (`tests/support/templates.py`), on MLX."""
    for seed, name in enumerate(names):
        write_tiny_model(root / name, seed=seed, context=context, thinking=True, template=TEMPLATES[name])
    async with _serve(root, {}, is_fake=False) as served:
        yield served


@asynccontextmanager
async def _serve(root: Path, document: dict[str, Any], *, is_fake: bool) -> AsyncIterator[Served]:
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop)
    settings = settings_of(document)
    catalog = Catalog([root])
    catalog.scan()
    if is_fake:
        backend: Backend = FakeBackend(clock, load_s=0, unload_s=0, step_s=0)
    else:
        backend = Device(loop, BackendLimits(4 * 10**9, 10**8), SchedulingParams(2048, 30))
    pool = Pool(backend, catalog, settings, clock=clock, usable_bytes=16 * 10**9, on_event=lambda event: None)
    await pool.start()
    try:
        async with serving(pool, catalog=catalog, document=document, clock=clock) as served:
            yield served
    finally:
        await pool.close()
        await backend.close()
