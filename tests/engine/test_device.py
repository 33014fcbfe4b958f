"""`engine.device`: one thread for all models, commands in order, events in one call per pass, and a clean end."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxd.engine import load_queue, pace, runner, source, text
from mlxd.engine.base import (
    BackendLimits,
    BackendMemory,
    ChatPrompt,
    Engine,
    Finished,
    FinishReason,
    GenerationRequest,
    LoadSpec,
    SamplingParams,
    SchedulingParams,
    SequenceEvent,
    Submit,
    TextKind,
)
from mlxd.engine.command import ModelFiles
from mlxd.engine.device import Device
from mlxd.protocol.errors import Draining, GenerationFailed, LoadFailed, RequestCancelled
from tests.engine.bench import WriteModel, load_spec
from tests.engine.conftest import LIMITS, SCHEDULING
from tests.support.sequence import Recorder, prepare, start


async def test_chat_end_to_end(device: Device, write_model: WriteModel) -> None:
    """A chat with a template that opens the thinking is answered as reasoning, and the text is the tokens' text."""
    engine = await device.load(load_spec(write_model(open_thinking=True)), lambda done, total: None)
    chat = ChatPrompt(({"role": "user", "content": "Hi"},))
    prompt = await engine.prepare(GenerationRequest(chat, max_tokens=12))
    sequence = await start(engine, prompt).ended()
    assert (len(sequence.text(TextKind.REASONING)), sequence.text()) == (12, "")


async def test_events_of_a_pass_come_in_one_call(
    device: Device, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows there are, the event loop is woken once per pass."""
    batches: list[list[Any]] = []
    deliver = device._on_posts

    def record(posts: list[Any]) -> None:
        batches.append(posts)
        deliver(posts)

    monkeypatch.setattr(device, "_on_posts", record)
    prompt = await prepare(engine, max_tokens=50)
    sequences = [start(engine, prompt) for _ in range(6)]
    for sequence in sequences:
        await sequence.ended()
    assert len(batches) < 50 + 20
    assert max(map(len, batches)) >= 6


async def test_a_listener_that_fails_costs_the_others_nothing(
    device: Device, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The others of its pass get their events, and the log gets the traceback and no text of an answer."""
    prompt = await prepare(engine, max_tokens=3)

    def fail(event: SequenceEvent) -> None:
        raise LookupError(type(event).__name__)

    engine.submit(Submit(77, prompt, SamplingParams(), (), 100), fail)
    ended = await start(engine, prompt).ended()
    assert len(ended.text()) == 3
    assert "LookupError: Delta" in caplog.text
    assert "text=" not in caplog.text


async def test_idle_device_is_blocked(device: Device, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing to do no pass is made: the thread waits for a command."""
    passes = []
    run_pass = runner.Runner._run_pass

    def count(self: runner.Runner) -> None:
        passes.append(1)
        run_pass(self)

    monkeypatch.setattr(runner.Runner, "_run_pass", count)
    await start(engine, await prepare(engine)).ended()
    passes.clear()
    for _ in range(20):
        await device.memory()
    assert len(passes) <= 22  # a pass is begun, and waits, before its command comes


async def until_deltas(sequence: Recorder, count: int) -> None:
    """Wait for more than *count* tokens."""
    await sequence.until(lambda: len(sequence.deltas) > count)


async def test_memory_returns_to_its_baseline(device: Device, write_model: WriteModel) -> None:
    """Weights, KV, prompt caches and the step in flight are gone when `unload` returns, also in mid-stream."""
    await device.unload(await device.load(load_spec(write_model()), lambda done, total: None))
    baseline = await device.memory()
    for _ in range(3):
        engine = await device.load(load_spec(write_model(layers=4, width=128)), lambda done, total: None)
        prompt = await prepare(engine, max_tokens=300)
        await start(engine, await prepare(engine)).ended()
        sequence = start(engine, prompt)
        await until_deltas(sequence, 5)
        assert (await device.memory()).active_bytes > baseline.active_bytes + 500_000
        await device.unload(engine)
        assert isinstance((await sequence.ended()).error, RequestCancelled)
        memory = await device.memory()
        assert memory.active_bytes - baseline.active_bytes < 50_000
        assert memory.cache_bytes == 0


async def test_what_still_holds_an_unloaded_model_holds_no_weights(
    device: Device, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback that was logged may refer to it for long."""
    held = []
    submit = text.TextModel.submit

    def hold(model: text.TextModel, *arguments: Any) -> None:
        held.append(model)
        submit(model, *arguments)

    monkeypatch.setattr(text.TextModel, "submit", hold)
    await device.unload(await device.load(load_spec(write_model()), lambda done, total: None))
    baseline = await device.memory()
    engine = await device.load(load_spec(write_model(layers=4, width=128)), lambda done, total: None)
    await start(engine, await prepare(engine)).ended()
    await device.unload(engine)
    assert held
    assert (await device.memory()).active_bytes - baseline.active_bytes < 50_000


async def test_commands_to_an_unloaded_model_are_harmless(device: Device, engine: Engine) -> None:
    """A sequence that is submitted as its model goes fails in so many words; everything else is ignored."""
    prompt = await prepare(engine)
    await device.unload(engine)
    late = await start(engine, prompt).ended()
    assert isinstance(late.error, RequestCancelled)
    for command in (engine.cancel, engine.pause):
        command(late.sequence_id)
    engine.resume(late.sequence_id, 1000)
    engine.set_prompt_cache_limit(5)
    assert await engine.trim_prompt_cache(0) == 0
    await device.unload(engine)


async def test_stream_goes_on_while_another_model_loads(
    device: Device, engine: Engine, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two slices of a load every stream gets a token."""
    monkeypatch.setattr(load_queue, "BUSY_SLICE_BYTES", 10_000)
    stream = start(engine, await prepare(engine, max_tokens=1000))
    await stream.until(lambda: bool(stream.deltas))
    tokens_at: list[int] = []
    other = await device.load(
        load_spec(write_model(layers=4)), lambda done, total: tokens_at.append(len(stream.deltas))
    )
    assert len(tokens_at) > 20
    assert tokens_at[-1] - tokens_at[0] >= len(tokens_at) - 2
    assert (await start(other, await prepare(other)).ended()).reason is FinishReason.LENGTH
    engine.cancel(stream.sequence_id)
    await stream.ended()


@pytest.mark.parametrize(("slower", "steps"), [(1, 1), (10, 10), (1000, 16)])
async def test_busy_models_take_turns(
    device: Device,
    engine: Engine,
    write_model: WriteModel,
    monkeypatch: pytest.MonkeyPatch,
    slower: float,
    steps: int,
) -> None:
    """One step each while they take as long; beside a slower model several, in about its time."""
    other = await device.load(load_spec(write_model(seed=5), model_id="other"), lambda done, total: None)
    record = pace.StepTurns.record

    def record_made_up(self: pace.StepTurns, model: Any, seconds: float) -> None:
        record(self, model, 0.001 if model.model_id == "other" else 0.001 * slower)

    monkeypatch.setattr(pace.StepTurns, "record", record_made_up)
    first = start(engine, await prepare(engine, max_tokens=1000))
    second = start(other, await prepare(other, max_tokens=1000))
    await first.until(lambda: len(first.deltas) >= 5)
    before = (len(first.deltas), len(second.deltas))
    await second.until(lambda: len(second.deltas) >= before[1] + 10 * steps)
    assert abs((len(first.deltas) - before[0]) * steps - (len(second.deltas) - before[1])) <= 2 * steps
    for each, sequence in ((engine, first), (other, second)):
        each.cancel(sequence.sequence_id)
        await sequence.ended()


async def test_failure_of_one_model_is_its_own(
    device: Device, engine: Engine, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the failed step fail with the cause in words; the other model streams on, and both serve again."""
    other = await device.load(load_spec(write_model(seed=5), model_id="other"), lambda done, total: None)
    prompt = await prepare(engine, max_tokens=100)
    alone = (await start(engine, prompt).ended()).text()
    step = text.TextModel.step

    def fail(self: text.TextModel, *, others_decode: bool) -> None:
        if self.model_id == "other":
            raise RuntimeError("the kernel has\nno device")
        step(self, others_decode=others_decode)

    stream, failing = start(engine, prompt), start(other, prompt)
    await failing.until(lambda: bool(failing.deltas))
    monkeypatch.setattr(text.TextModel, "step", fail)
    await failing.ended()
    assert isinstance(failing.error, GenerationFailed)
    assert failing.error.message == "model 'other' failed while answering: the kernel has no device"
    monkeypatch.undo()
    assert (await stream.ended()).text() == alone
    assert (await start(other, prompt).ended()).reason is FinishReason.LENGTH


async def test_failure_of_a_listener_is_its_own(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in one listener is logged and costs no other sequence an event."""
    prompt = await prepare(engine, max_tokens=30)
    broken, sound = start(engine, prompt), start(engine, prompt)

    def fail(event: SequenceEvent) -> None:
        raise ValueError("a bug")

    broken.on_event = fail
    with caplog.at_level(logging.CRITICAL, "mlxd.engine.device"):
        await sound.ended()
    assert len(sound.deltas) == 30


async def test_bug_in_the_run_loop_ends_everything_in_words(
    device: Device, engine: Engine, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the thread itself fail, nobody waits forever."""
    sequence = start(engine, await prepare(engine, max_tokens=1000))
    await sequence.until(lambda: bool(sequence.deltas))

    def fail(self: runner.Runner) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runner.Runner, "_run_pass", fail)
    assert "a bug" in (await sequence.ended()).error.message
    late = start(engine, await prepare_again(engine, sequence))
    assert "a bug" in (await late.ended()).error.message
    with pytest.raises(GenerationFailed, match="a bug"):
        await device.load(load_spec(write_model()), lambda done, total: None)


async def prepare_again(engine: Engine, sequence: Recorder) -> Any:
    """Prepare another prompt; workers do not depend on the device."""
    assert sequence.has_ended
    return await prepare(engine)


async def test_load_without_mlx_fails_in_words(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken installation is told to whoever loads a model; the streams of half an import are given back."""
    cleared: list[str] = []
    monkeypatch.setattr(mx, "clear_streams", lambda: cleared.append(threading.current_thread().name))
    monkeypatch.setitem(sys.modules, "mlxd.engine.runner", None)
    with pytest.raises(LoadFailed, match="mlx-lm cannot be imported"):
        await device.load(load_spec(tmp_path), lambda done, total: None)
    with pytest.raises(LoadFailed):
        await device.memory()
    await device.close()
    assert cleared == ["mlxd-device"]


async def test_warm_up_says_when_mlx_is_there(device: Device) -> None:
    """After the import, which changes bounds of the process, its caller has the word, on the event loop."""
    imported = asyncio.Event()
    device.warm_up(imported.set)
    await asyncio.wait_for(imported.wait(), 60)
    assert "mlx_lm.utils" in sys.modules


async def test_memory_before_mlx_is_nothing(device: Device) -> None:
    """Asking does not import MLX."""
    assert await device.memory() == BackendMemory(0, 0, 0)


async def test_limits_reach_mlx(device: Device, engine: Engine) -> None:
    """They apply from the start, and when they change."""
    device.set_limits(BackendLimits(memory_bytes=3_000_000_000, cache_bytes=12_345_678))
    await device.memory()
    assert mx.set_memory_limit(LIMITS.memory_bytes) == 3_000_000_000
    assert mx.set_cache_limit(LIMITS.cache_bytes) == 12_345_678


async def test_limits_set_before_the_first_load_count(device: Device, write_model: WriteModel) -> None:
    """Commands that come before MLX is imported are not lost."""
    device.set_limits(BackendLimits(memory_bytes=2_000_000_000, cache_bytes=1_000_000))
    device.set_scheduling(SchedulingParams(prefill_step_tokens=50, target_gap_ms=30))
    engine = await device.load(load_spec(write_model()), lambda done, total: None)
    assert mx.set_memory_limit(LIMITS.memory_bytes) == 2_000_000_000
    sequence = await start(engine, await prepare(engine, "x" * 121, max_tokens=1)).ended()
    assert [event.done for event in sequence.prefills] == [0, 50, 100, 120, 121]


async def test_scheduling_changes_live(device: Device, engine: Engine) -> None:
    """The next prefill takes steps of the new size."""
    device.set_scheduling(SchedulingParams(prefill_step_tokens=50, target_gap_ms=30))
    sequence = await start(engine, await prepare(engine, "x" * 121, max_tokens=1)).ended()
    assert [event.done for event in sequence.prefills] == [0, 50, 100, 120, 121]


async def test_prompt_cache_size_is_known_when_the_end_is(engine: Engine) -> None:
    """A listener that hears the end sees the size that the end left."""
    seen: list[int] = []
    sequence = start(engine, await prepare(engine))
    sequence.on_event = lambda event: seen.append(engine.prompt_cache_bytes) if isinstance(event, Finished) else None
    await sequence.ended()
    assert seen == [(engine.facts.kv.groups[0][0] + 4) * 36]  # a token of the index takes 4 bytes


async def test_prompts_that_are_too_large_to_keep_are_told(device: Device, write_model: WriteModel) -> None:
    """A prompt that its bound lets nobody keep is counted from its end on; one that is let in is not."""
    engine = await device.load(load_spec(write_model(), prompt_cache_limit_bytes=20_000), lambda done, total: None)
    counts = []
    for question in ("a", "x" * 500, "y" * 500):
        await start(engine, await prepare(engine, question, max_tokens=1)).ended()
        counts.append((engine.prompts_too_large, engine.prompt_cache_bytes > 0))
    assert counts == [(0, True), (1, True), (2, True)]


async def test_load_that_is_cancelled_at_its_end_leaves_nothing(
    device: Device, write_model: WriteModel, baseline_bytes: int
) -> None:
    """A model that was complete before the device heard of the cancellation is unloaded again."""

    def on_progress(done: int, total: int) -> None:
        if done == total:
            task.cancel()

    task = asyncio.ensure_future(device.load(load_spec(write_model()), on_progress))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await device.memory()).active_bytes < baseline_bytes + 1000


@pytest.fixture
def slow_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder whose read hangs until the test is over."""
    released = threading.Event()
    read = source.read_model_files

    def hang(spec: LoadSpec) -> ModelFiles:
        if spec.path == tmp_path:
            released.wait()
        return read(spec)

    monkeypatch.setattr(source, "read_model_files", hang)
    yield tmp_path
    released.set()


async def test_slow_folders_delay_nobody_else(
    device: Device, engine: Engine, write_model: WriteModel, slow_folder: Path
) -> None:
    """While the folders of several loads hang, prompts are prepared and other models load."""
    hanging = [asyncio.ensure_future(device.load(load_spec(slow_folder), lambda done, total: None)) for _ in range(5)]
    await asyncio.sleep(0)
    assert (await start(engine, await prepare(engine)).ended()).text()
    other = await device.load(load_spec(write_model(seed=5)), lambda done, total: None)
    assert (await start(other, await prepare(other)).ended()).text()
    assert not any(load.done() for load in hanging)
    for load in hanging:
        load.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_load_is_cancelled_while_its_folder_hangs(device: Device, engine: Engine, slow_folder: Path) -> None:
    """It ends at once, and the thread that reads is left to itself."""
    load = asyncio.ensure_future(device.load(load_spec(slow_folder), lambda done, total: None))
    await device.memory()
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    assert (await start(engine, await prepare(engine)).ended()).text()


async def test_close_ends_what_runs(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch, baseline_bytes: int
) -> None:
    """Running sequences fail, a load in progress fails, the thread is gone, and asking afterwards is refused."""
    device = Device(asyncio.get_running_loop(), LIMITS, SCHEDULING)
    engine = await device.load(load_spec(write_model()), lambda done, total: None)
    sequence = start(engine, await prepare(engine, max_tokens=1000))
    await sequence.until(lambda: bool(sequence.deltas))
    monkeypatch.setattr(load_queue, "BUSY_SLICE_BYTES", 1)
    slices = asyncio.Event()
    loading = asyncio.ensure_future(device.load(load_spec(write_model(seed=7)), lambda done, total: slices.set()))
    await slices.wait()
    await device.close()
    assert isinstance(sequence.error, RequestCancelled)
    with pytest.raises(RequestCancelled):
        await loading
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mlxd-")]
    with pytest.raises(Draining):
        await device.memory()
    engine.cancel(sequence.sequence_id)
    await device.close()
    del engine, device
    gc.collect()
    assert mx.get_active_memory() < baseline_bytes + 1000


async def test_close_before_mlx_was_needed() -> None:
    """A device that never loaded anything ends at once."""
    await Device(asyncio.get_running_loop(), LIMITS, SCHEDULING).close()


async def test_foreign_engine_is_not_unloaded(device: Device) -> None:
    """Only what this device loaded can be unloaded by it."""
    with pytest.raises(TypeError):
        await device.unload(object())  # type: ignore[arg-type]
