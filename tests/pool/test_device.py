"""The pool on the real engine, with tiny models: what no fake can prove."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlxd.catalog import Catalog
from mlxd.clock import LoopClock
from mlxd.engine import load_queue
from mlxd.engine.base import BackendLimits, Delta, GenerationRequest, SamplingParams, SchedulingParams, TextPrompt
from mlxd.engine.device import Device
from mlxd.engine.loader import LoadedModel, SlicedLoad
from mlxd.pool.event import PoolEvent
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import InsufficientCapacity, MlxdError
from mlxd.protocol.table import decode
from tests.support.model_on_disk import write_any_model
from tests.support.sequence import GREEDY
from tests.support.tiny_model import write_tiny_model

MODELS = ("a", "b", "c")
USABLE_BYTES = 4 * 10**9
# What MLX keeps for itself after everything was unloaded: streams and constants.
BASELINE_SLACK_BYTES = 200_000
# What a tiny model holds beside its parameters.
CONSTANTS_BYTES = 10_000


@pytest.fixture(scope="module", name="models")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three tiny models of one size."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(MODELS):
        write_tiny_model(root / name, seed=seed)
    return root


@dataclass(slots=True)
class Real:
    """A pool on a device of its own."""

    pool: Pool
    device: Device
    events: list[PoolEvent]
    document: dict[str, Any]

    async def answer(
        self,
        model: str,
        prompt: str = "hello",
        tokens: int = 12,
        sampling: SamplingParams = GREEDY,
        request_id: str | None = None,
    ) -> str:
        """Make a request and return its text."""
        request = GenerationRequest(TextPrompt(prompt), sampling, max_tokens=tokens)
        text = ""
        async with self.pool.lease(model, request_id=request_id or f"{model}-{prompt}") as lease:
            prepared = await lease.prepare(request)
            async for event in lease.generate(request, prepared):
                if isinstance(event, Delta):
                    text += event.text
        return text

    def change(self, **pool: Any) -> None:
        """Apply settings of the pool."""
        document = {**self.document, "pool": {**self.document["pool"], **pool}}
        new = decode(document, USABLE_BYTES)
        self.pool.check(new, force=False)
        self.document = document
        self.pool.apply(new)

    def loaded(self) -> list[str]:
        """Return the ids of the models that are ready."""
        return [model.id for model in self.pool.status().models if model.state == "ready"]

    async def active_bytes(self) -> int:
        """Return what MLX holds."""
        return (await self.device.memory()).active_bytes

    def running(self) -> int:
        """Return how many sequences run."""
        return sum(model.running for model in self.pool.status().models)

    async def look_at_truth(self, empty_bytes: int) -> None:
        """P12: when nothing runs, the device holds the weights and prompt caches that the status shows.

        *empty_bytes* is what MLX held before the first load.
        """
        active_bytes = await self.active_bytes()
        memory = self.pool.status().memory
        said_bytes = memory.weights_bytes + memory.prompt_cache_bytes
        # Tables of the rotary embedding and the like are no weights. No freed buffer is used again: it may be larger.
        other_bytes = abs(active_bytes - empty_bytes - said_bytes)
        assert other_bytes <= CONSTANTS_BYTES * len(self.loaded()), "P12: the device holds other than the status says"


@asynccontextmanager
async def real(folder: Path, document: Mapping[str, Any] | None = None) -> AsyncIterator[Real]:
    """Run a pool on the real engine."""
    loop = asyncio.get_running_loop()
    catalog = Catalog([folder])
    catalog.scan()
    given_document = {"pool": {"memory": "1GB"}, **(document or {})}
    first = decode(given_document, USABLE_BYTES)
    device = Device(loop, BackendLimits(10**9, 0), SchedulingParams(2048, 30))
    events: list[PoolEvent] = []
    device.set_limits = lambda limits: None  # type: ignore[method-assign]
    pool = Pool(device, catalog, first, clock=LoopClock(loop), usable_bytes=USABLE_BYTES, on_event=events.append)
    await pool.start()
    try:
        yield Real(pool, device, events, dict(given_document))
    finally:
        await pool.close()
        await device.close()


async def _room_for_one(r: Real) -> int:
    """Return a limit that holds one of the models, and not two."""
    await r.pool.load("a")
    reserved_bytes = r.pool.status().memory.reserved_bytes
    await r.pool.unload("a")
    return reserved_bytes * 3 // 2


async def test_alternating_requests_to_two_models_of_which_one_fits(models: Path) -> None:
    """Under a limit for one of them, every request is answered as if it were alone; each turn swaps the model."""
    async with real(models) as r:
        alone = {name: await r.answer(name) for name in ("a", "b")}
        await r.pool.unload("a")
        await r.pool.unload("b")
        r.change(memory=f"{await _room_for_one(r)}B")
        r.events.clear()
        for turn in range(6):
            name = "ab"[turn % 2]
            assert await r.answer(name) == alone[name]
            assert r.loaded() == [name]
        answers = await asyncio.gather(*(r.answer("ab"[turn % 2]) for turn in range(6)))

        assert answers == [alone["ab"[turn % 2]] for turn in range(6)]
        assert [event.kind for event in r.events].count("model.loading") >= 6
        assert "pool.over_limit" not in {event.kind for event in r.events}


async def test_steady_requests_to_one_model_do_not_starve_another(models: Path) -> None:
    """With room for one and requests to A that never leave a gap, B is answered after the patience; A's are whole."""
    async with real(models) as r:
        alone = await r.answer("a", tokens=60)
        r.change(memory=f"{await _room_for_one(r)}B", evict_patience="100ms")
        await r.pool.load("a")
        done = asyncio.Event()
        answers: list[str] = []

        async def keep_asking() -> None:
            while not done.is_set():  # it ends with B's answer only
                answers.append(await r.answer("a", tokens=60))

        steady = [asyncio.ensure_future(keep_asking()) for _ in range(4)]
        while not answers:
            await r.device.memory()
        async with asyncio.timeout(60):
            assert await r.answer("b")
        done.set()
        await asyncio.gather(*steady)

        assert set(answers) == {alone}
        kinds = [event.kind for event in r.events if event.model_id == "a"]
        assert "model.draining" in kinds


@pytest.mark.parametrize(
    ("model_type", "decoding", "reason"),
    [
        ("qwen3", "batched", "give the same logits in a batch as alone"),
        ("mamba", "single prefill", "the state of the shorter one changes by"),
        ("gemma2", "one by one", "answers disturb each other"),
        ("llama4", "one by one", "no batch for the caches"),
    ],
)
async def test_status_says_how_a_model_is_decoded(tmp_path: Path, model_type: str, decoding: str, reason: str) -> None:
    """A loaded model shows what the check found and why, and two requests at once answer as each alone."""
    write_any_model(tmp_path / "m", model_type)
    prompts = ("The quick brown fox", "jumps over the lazy dog, and again, and once more")
    async with real(tmp_path) as r:
        alone = [await r.answer("m", prompt) for prompt in prompts]
        assert await asyncio.gather(*(r.answer("m", prompt) for prompt in prompts)) == alone
        (model,) = r.pool.status().models
        assert model.decoding == decoding
        assert model.decoding_reason is not None
        assert reason in model.decoding_reason


async def _load_beside_streams(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Load a model in many slices while eight rows of another one decode, and look at P12 when all has ended."""
    write_tiny_model(folder / "a", all_bytes=True)
    write_tiny_model(folder / "b", layers=12)
    patch.setattr(load_queue, "BUSY_SLICE_BYTES", 3_000)
    async with real(folder) as r:
        await r.pool.load("a")
        await r.pool.unload("a")
        empty_bytes = await r.active_bytes()
        sampling = SamplingParams(top_p=0.9, seed=1)
        streams = [
            asyncio.ensure_future(r.answer("a", tokens=1500, sampling=sampling, request_id=str(i))) for i in range(8)
        ]
        while r.running() < 8:
            await r.active_bytes()
        await r.pool.load("b")
        assert r.running() == 8, "the streams ended before the load"
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        while r.running():
            await r.active_bytes()
        await r.look_at_truth(empty_bytes)


async def test_a_load_beside_running_streams_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P12: a model that was loaded while a batch with top_p decoded counts as what it takes."""
    await _load_beside_streams(tmp_path, monkeypatch)


async def test_a_wrong_measurement_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P12 fails on weights measured as the growth of active memory, from which the frees of streams are taken."""
    advance = SlicedLoad.advance
    grown_bytes: dict[SlicedLoad, int] = defaultdict(int)

    def measure(load: SlicedLoad, slice_bytes: int) -> LoadedModel | None:
        # On an idle machine the step of the streams is over before the slice begins: what it frees is made up.
        of_step = mx.zeros((10, 8, 258))
        mx.eval(of_step)
        before_bytes, done_bytes = mx.get_active_memory(), load.done_bytes
        loaded = advance(load, slice_bytes)
        del of_step
        if load.done_bytes > done_bytes:
            grown_bytes[load] += mx.get_active_memory() - before_bytes
        if loaded is None:
            return None
        return replace(loaded, facts=replace(loaded.facts, weights_bytes=grown_bytes[load]))

    monkeypatch.setattr(SlicedLoad, "advance", measure)
    with pytest.raises(AssertionError, match="P12: "):
        await _load_beside_streams(tmp_path, monkeypatch)


OPERATIONS = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(MODELS), st.integers(1, 40)),
    st.tuples(st.just("send"), st.sampled_from(MODELS), st.integers(1, 40)),
    st.tuples(st.just("drop"), st.integers(0, 8)),
    st.tuples(st.just("wait"), st.integers(1, 60)),
    st.tuples(st.just("load"), st.sampled_from(MODELS)),
    st.tuples(st.just("unload"), st.sampled_from(MODELS), st.booleans()),
    st.tuples(st.just("limit"), st.sampled_from((1, 2, 4))),
    st.tuples(st.just("preload"), st.lists(st.sampled_from(MODELS), unique=True, max_size=2)),
)


@settings(
    max_examples=max(3, settings().max_examples * 5 // 100),
    database=None,
    phases=[Phase.generate],  # a history of the real device does not repeat exactly, so it cannot be shrunk
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(history=st.lists(OPERATIONS, min_size=10, max_size=25))
def test_random_histories_leave_nothing_behind(models: Path, history: list[tuple[Any, ...]]) -> None:
    """P6 and P12: every request ends whole or in a stated way, and after unloading all MLX is at its baseline."""
    asyncio.run(_live(models, history))


async def _live(models: Path, history: list[tuple[Any, ...]]) -> None:
    async with real(models, {"queue": {"timeout": "20s"}, "engine": {"max_sequences": 2}}) as r:
        alone = {name: await r.answer(name, tokens=40) for name in MODELS}
        unit_bytes = r.pool.status().memory.reserved_bytes // 3
        for name in MODELS:
            await r.pool.unload(name)
        baseline_bytes = await r.active_bytes()
        played = Played(r, unit_bytes)
        for name, *arguments in history:
            await getattr(played, name)(*arguments)
        async with asyncio.timeout(120):
            ended = await asyncio.gather(*(task for task, _ in played.clients), return_exceptions=True)
            await asyncio.gather(*played.commands, return_exceptions=True)
        for (_, model), answer in zip(played.clients, ended, strict=True):
            assert isinstance(answer, str | MlxdError | asyncio.CancelledError), repr(answer)
            assert not isinstance(answer, str) or alone[model].startswith(answer)
        await r.look_at_truth(baseline_bytes)
        r.change(preload=[])
        for name in MODELS:
            await r.pool.unload(name)
        status = r.pool.status()
        assert (status.memory.reserved_bytes, r.loaded(), r.pool.queue_length) == (0, [], 0)
        assert await r.active_bytes() <= baseline_bytes + BASELINE_SLACK_BYTES


@dataclass(slots=True)
class Played:
    """A history under way."""

    r: Real
    unit_bytes: int  # what one model needs
    clients: list[tuple[asyncio.Task[str], str]] = field(default_factory=list)
    commands: list[asyncio.Task[Any]] = field(default_factory=list)

    async def send(self, model: str, tokens: int) -> None:
        self.clients.append((asyncio.ensure_future(self.r.answer(model, tokens=tokens)), model))

    async def drop(self, place: int) -> None:
        if place < len(self.clients):
            self.clients[place][0].cancel()

    async def wait(self, turns: int) -> None:
        for _ in range(turns):
            await self.r.device.memory()  # a turn of the device, and with it of the loop

    async def load(self, model: str) -> None:
        self.commands.append(asyncio.ensure_future(self.r.pool.load(model)))

    async def unload(self, model: str, force: bool) -> None:
        self.commands.append(asyncio.ensure_future(self.r.pool.unload(model, force=force)))

    async def limit(self, models: int) -> None:
        with contextlib.suppress(InsufficientCapacity):
            self.r.change(memory=f"{models * self.unit_bytes + self.unit_bytes // 4}B")

    async def preload(self, models: list[str]) -> None:
        with contextlib.suppress(InsufficientCapacity):
            self.r.change(preload=models)
