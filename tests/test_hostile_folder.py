"""A spoilt model beside a good one: whatever becomes of it, the good one answers as before."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mlxd.catalog import Catalog
from mlxd.clock import LoopClock
from mlxd.engine.base import BackendLimits, Delta, GenerationRequest, SchedulingParams, TextPrompt
from mlxd.engine.device import Device
from mlxd.engine.vector import EmbeddingRequest
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import MlxdError, ModelNotFound
from tests.support.adapter import write_adapter
from tests.support.hostile_folder import (
    TEMPLATES,
    Damage,
    adapter_damages,
    copy_template,
    damages,
    write_template,
)
from tests.support.http_server import settings_of
from tests.support.sequence import GREEDY
from tests.support.tiny_model import write_tiny_model

# Each loads a model and answers three times, so that only a quarter of the usual number; `make fuzz-folders` has more.
_EXAMPLES = settings().max_examples // 4
# An endless wait is a failure; a slow machine is none.
_PATIENCE_S = 120


class Pair:
    """A good model that is loaded, and a spoilt one that comes and goes, in a real pool on a real device."""

    def __init__(self, root: Path) -> None:
        """Write the models under *root*."""
        self.odd = root / "models" / "odd"
        self.templates = {kind: write_template(root / "templates" / kind, kind) for kind in TEMPLATES}
        good = write_tiny_model(root / "models" / "good", seed=1)
        self.adapter = root / "adapter"
        write_adapter(self.adapter, good)
        self._catalog = Catalog([root / "models"], adapters={"good+odd": root / "models" / "odd"})
        self._settings = settings_of({"pool": {"memory": "1GB"}})
        self._expected = ""

    async def open(self) -> None:
        """Start, and let the good model answer once."""
        loop = asyncio.get_running_loop()
        self._device = Device(loop, BackendLimits(10**9, 0), SchedulingParams(2048, 30))
        self._pool = Pool(
            self._device,
            self._catalog,
            self._settings,
            clock=LoopClock(loop),
            usable_bytes=2 * 10**9,
            on_event=lambda event: None,
        )
        self._catalog.scan()
        await self._pool.start()
        self._expected = await self._answer("good")

    async def close(self) -> None:
        """Unload everything."""
        await self._pool.close()
        await self._device.close()

    async def try_odd(self, model_id: str = "odd") -> str:
        """Search, load and ask the odd model while the good one answers; return how it ended."""
        self._catalog.scan()
        self._pool.rescan()
        with contextlib.suppress(ModelNotFound):  # with a problem it cannot even be asked for
            self._pool.reset(model_id)
        problem = self._catalog.get(model_id).problem
        async with asyncio.timeout(_PATIENCE_S):
            good = asyncio.create_task(self._answer("good"))
            try:
                await self._answer(model_id)
                outcome = "served"
            except MlxdError as error:
                outcome = error.code
            assert await good == self._expected
            assert await self._answer("good") == self._expected
            with contextlib.suppress(ModelNotFound):
                await self._pool.unload(model_id, force=True)
        assert outcome != "internal_error"
        assert problem is None or outcome == "model_not_found"
        assert self._catalog.get("good").problem is None
        return outcome

    async def _answer(self, model_id: str) -> str:
        async with self._pool.lease(model_id, request_id="r") as lease:
            if self._catalog.get(model_id).kind == "embedding":
                return repr(await lease.embed(await lease.prepare_inputs(EmbeddingRequest(("once",)))))
            request = GenerationRequest(TextPrompt("Once upon a time"), sampling=GREEDY, max_tokens=8)
            prompt = await lease.prepare(request)
            async with contextlib.aclosing(lease.generate(request, prompt)) as events:
                return "".join([said.text async for said in events if isinstance(said, Delta)])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Pair]]:
    """A loop of its own and what runs in it, for all examples."""
    with asyncio.Runner() as runner:
        pair = Pair(tmp_path_factory.mktemp("hostile"))
        runner.run(pair.open())
        yield runner, pair
        runner.run(pair.close())


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_is_served(pair: tuple[asyncio.Runner, Pair], kind: str) -> None:
    """Each kind of model answers as long as nothing is spoilt."""
    runner, models = pair
    copy_template(models.templates[kind], models.odd)
    assert runner.run(models.try_odd()) == "served"


@settings(max_examples=_EXAMPLES, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(TEMPLATES), changes=st.lists(damages, min_size=1, max_size=3))
def test_a_spoilt_model_hurts_no_other(pair: tuple[asyncio.Runner, Pair], kind: str, changes: list[Damage]) -> None:
    """Any value for any key of any file: the process lives, nothing hangs, and the good model answers as before."""
    runner, models = pair
    copy_template(models.templates[kind], models.odd)
    for damage in changes:
        damage.apply(models.odd)
    event(runner.run(models.try_odd()))


@settings(max_examples=_EXAMPLES, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(adapter_damages, max_size=3))
def test_a_spoilt_adapter_hurts_no_other(pair: tuple[asyncio.Runner, Pair], changes: list[Damage]) -> None:
    """Nor does one that is put on the good model itself."""
    runner, models = pair
    copy_template(models.adapter, models.odd)
    for damage in changes:
        damage.apply(models.odd)
    outcome = runner.run(models.try_odd("good+odd"))
    event(outcome)
    assert changes or outcome == "served"
