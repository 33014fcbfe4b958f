"""A fault on the device thread stays in the model that it belongs to; one of no model ends everything in words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mlxd.engine import embedding, model_set, runner, text
from mlxd.engine.base import Engine, FinishReason
from mlxd.engine.device import Device
from mlxd.engine.prompt_cache import PromptCache
from mlxd.engine.vector import EmbeddingRequest
from mlxd.protocol.errors import GenerationFailed, LoadFailed, MlxdError
from tests.engine.bench import WriteModel, load_spec
from tests.engine.conftest import LIMITS, SCHEDULING
from tests.support.sequence import Recorder, embed, prepare, start


def fail(*args: object, **options: object) -> Any:
    """Be the bug."""
    raise IndexError("a bug")


@pytest.fixture
async def other(device: Device, engine: Engine, write_model: WriteModel) -> Engine:
    """A second model, whose answers no fault of the first may change."""
    return await device.load(load_spec(write_model(seed=5), model_id="other"), lambda done, total: None)


async def streaming(engine: Engine, max_tokens: int = 300) -> Recorder:
    """Start a long answer and return when it has begun."""
    sequence = start(engine, await prepare(engine, max_tokens=max_tokens))
    await sequence.until(lambda: bool(sequence.deltas))
    return sequence


async def serves(engine: Engine) -> bool:
    """Tell whether a whole answer comes."""
    return (await start(engine, await prepare(engine, max_tokens=5)).ended()).reason is FinishReason.LENGTH


Act = Callable[[Device, Engine], Any]


async def _trim(device: Device, engine: Engine) -> None:
    assert await engine.trim_prompt_cache(0) == 0


async def _bound(device: Device, engine: Engine) -> None:
    engine.set_prompt_cache_limit(0)


async def _pace(device: Device, engine: Engine) -> None:
    device.set_scheduling(SCHEDULING)


async def _remember(device: Device, engine: Engine) -> None:
    await device.memory()


@pytest.mark.parametrize(
    ("owner", "name", "act"),
    [
        (PromptCache, "trim", _trim),
        (PromptCache, "set_limit", _bound),
        (text.TextModel, "set_scheduling", _pace),
        (model_set, "free_memory", _trim),
    ],
)
async def test_a_command_that_fails_is_answered_and_costs_no_other_model(
    device: Device, engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Act
) -> None:
    """The model serves on, and so do the others."""
    stream = await streaming(other)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        await act(device, engine)
        await device.memory()  # commands are carried out in order
    if owner is not text.TextModel:
        assert (await stream.ended()).reason is FinishReason.LENGTH
    assert await serves(engine)
    assert await serves(other)


async def test_a_reading_that_fails_is_answered_in_words(
    device: Device, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked gets the error; nobody waits forever."""
    with monkeypatch.context() as patch:
        patch.setattr(runner, "read_memory", fail)
        with pytest.raises(GenerationFailed, match="a bug"):
            await device.memory()
    assert await serves(engine)


async def test_an_unload_that_fails_ends_the_models_sequences(
    device: Device, engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is gone, its streams have an error, the others stream on."""
    doomed, stream = await streaming(engine), await streaming(other)
    with monkeypatch.context() as patch:
        patch.setattr(text.TextModel, "close", fail)
        await device.unload(engine)
    assert "was unloaded" in (await doomed.ended()).error.message
    assert (await stream.ended()).reason is FinishReason.LENGTH


async def test_a_batch_that_cannot_be_ended_is_replaced(
    engine: Engine, other: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step fails, and so does the clearing up: all of the model's sequences end, and it begins anew."""
    stream = await streaming(other)
    doomed = [await streaming(engine) for _ in range(2)]
    step = text.TextModel.step

    def fail_first(self: text.TextModel, **options: bool) -> None:
        if self.model_id != "other":
            fail()
        step(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(text.TextModel, "fail_batch", fail)
        patch.setattr(text.TextModel, "step", fail_first)
        for sequence in doomed:
            assert "a bug" in (await sequence.ended()).error.message
            assert sum(type(event).__name__ == "Failed" for event in sequence.events) == 1
    assert (await stream.ended()).reason is FinishReason.LENGTH
    assert await serves(engine)


@pytest.mark.parametrize("name", ["start", "step"])
async def test_a_text_that_cannot_be_embedded_costs_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The job fails in words, a stream of the same model goes on, and later texts are embedded."""
    stream = await streaming(engine)
    inputs = await engine.prepare_inputs(EmbeddingRequest(("a text",)))
    with monkeypatch.context() as patch:
        patch.setattr(embedding.Embedder, name, fail)
        assert "a bug" in (await embed(engine, inputs).ended()).error.message
    assert (await stream.ended()).reason is FinishReason.LENGTH
    assert (await embed(engine, inputs).ended()).has_ended


async def test_a_model_that_cannot_be_run_is_a_failed_load(
    device: Device, engine: Engine, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are let go of; the models that are there serve on."""
    stream = await streaming(engine)
    with monkeypatch.context() as patch:
        patch.setattr(text.TextModel, "__init__", fail)
        with pytest.raises(LoadFailed, match="a bug"):
            await device.load(load_spec(write_model(seed=5)), lambda done, total: None)
    assert (await stream.ended()).reason is FinishReason.LENGTH


async def test_a_fault_of_nobody_is_told_first_and_ends_all(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon learns it before any sequence does, and later commands are refused; what cannot be closed is ended."""
    told: list[MlxdError] = []
    device = Device(asyncio.get_running_loop(), LIMITS, SCHEDULING, told.append)
    engines = [await device.load(load_spec(write_model(seed=seed)), lambda done, total: None) for seed in (0, 5)]
    sequences = [await streaming(engine) for engine in engines]
    order: list[int] = []
    for sequence in sequences:
        sequence.on_event = lambda event: order.append(len(told))
    with monkeypatch.context() as patch:
        patch.setattr(text.TextModel, "close", fail)
        patch.setattr(runner.Runner, "_run_pass", fail)
        for sequence in sequences:
            assert "the device thread failed" in (await sequence.ended()).error.message
    assert (order[-1], len(told)) == (1, 1)
    with pytest.raises(GenerationFailed, match="a bug"):
        await engines[0].trim_prompt_cache(0)
    with pytest.raises(GenerationFailed, match="a bug"):
        await device.unload(engines[0])
    await device.close()
