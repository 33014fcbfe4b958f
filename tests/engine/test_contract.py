"""What `base.Backend` and `base.Engine` promise, on the fake (the pool's tests stand on it) and for real."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlxd.engine import load_queue
from mlxd.engine.base import (
    Delta,
    Engine,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    Paused,
    Prefilling,
    PromptScored,
    SamplingParams,
    TextPrompt,
    TokenPrompt,
    Usage,
)
from mlxd.protocol.errors import ContextLengthExceeded, InvalidRequest, LoadFailed, RequestCancelled
from tests.engine.bench import Bench
from tests.support.sequence import Recorder, prepare, start


async def run(bench: Bench, engine: Engine, **options: Any) -> Recorder:
    """Run one greedy sequence of 20 tokens to its end."""
    prompt = await bench.wait(prepare(engine, max_tokens=options.pop("max_tokens", 20)))
    return await bench.wait(start(engine, prompt, **options).ended())


async def test_load_reports_progress_to_the_end(bench: Bench) -> None:
    """Progress grows up to the total, and the engine knows its id and its facts."""
    progress: list[tuple[int, int]] = []
    engine = await bench.wait(bench.backend.load(bench.spec("b"), lambda done, total: progress.append((done, total))))
    assert progress == sorted(progress)
    assert progress[-1][0] == progress[-1][1] == engine.facts.weights_bytes
    assert engine.model_id == "b"
    assert engine.facts.kv.bytes_for(1) > 0


async def test_failed_load_says_why(bench: Bench) -> None:
    """A model that cannot be loaded raises `LoadFailed` with its name, and others can be loaded afterwards."""
    with pytest.raises(LoadFailed, match="broken"):
        await bench.wait(bench.backend.load(bench.broken_spec(), lambda done, total: None))
    engine = await bench.wait(bench.backend.load(bench.spec(), lambda done, total: None))
    assert (await run(bench, engine)).reason is FinishReason.LENGTH


async def test_cancelled_load_is_aborted(baseline_bytes: int, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load whose task is cancelled ends before it is complete; its memory is free when the task has ended."""
    progress: list[tuple[int, int]] = []
    begun = asyncio.Event()
    monkeypatch.setattr(load_queue, "IDLE_SLICE_BYTES", 1)

    def on_progress(done: int, total: int) -> None:
        progress.append((done, total))
        if done > 0:
            begun.set()

    loading = asyncio.ensure_future(bench.backend.load(bench.spec("b"), on_progress))
    await bench.wait(begun.wait())
    loading.cancel()
    assert not loading.done()
    with pytest.raises(asyncio.CancelledError):
        await bench.wait(loading)
    assert progress[-1][0] < progress[-1][1]
    assert (await bench.wait(bench.backend.memory())).active_bytes < baseline_bytes + 50_000
    before = len(progress)
    monkeypatch.undo()
    assert (await run(bench, await bench.wait(bench.backend.load(bench.spec("b"), lambda done, total: None)))).text()
    assert len(progress) == before


async def test_load_that_is_cancelled_before_it_begins_is_none(bench: Bench) -> None:
    """A task that is cancelled in the turn in which it was made loads nothing."""
    loading = asyncio.ensure_future(bench.backend.load(bench.spec("b"), lambda done, total: None))
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bench.wait(loading)


async def test_prepare_resolves_max_tokens_against_the_context(bench: Bench, loaded: Engine) -> None:
    """Without max_tokens, or with more than there is room for, the rest of the context is what may be generated."""
    for max_tokens in (None, 1_000_000):
        prompt = await bench.wait(prepare(loaded, "abc", max_tokens=max_tokens))
        assert len(prompt.tokens) == 3
        assert prompt.max_tokens == loaded.facts.context_length - 3


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (GenerationRequest(TextPrompt("abc" * 5000)), ContextLengthExceeded),
        (GenerationRequest(TextPrompt("")), InvalidRequest),
        (GenerationRequest(TokenPrompt(())), InvalidRequest),
        (GenerationRequest(TokenPrompt((1, 2_000_000))), InvalidRequest),
        (GenerationRequest(TokenPrompt((-1,))), InvalidRequest),
    ],
)
async def test_prepare_refuses(
    bench: Bench, loaded: Engine, request_: GenerationRequest, error: type[Exception]
) -> None:
    """A prompt that is empty, too long, or holds unknown tokens is refused before anything is submitted."""
    with pytest.raises(error):
        await bench.wait(loaded.prepare(request_))


async def test_events_come_in_order_with_true_counts(bench: Bench, loaded: Engine) -> None:
    """Prefilling up to the whole prompt, then one delta per token, then the end with the usage."""
    sequence = await run(bench, loaded)
    kinds = [type(event) for event in sequence.events]
    n_prefills = len(sequence.prefills)
    assert kinds == [Prefilling] * n_prefills + [Delta] * 20 + [Finished]
    assert (sequence.prefills[-1].done, sequence.prefills[-1].total) == (16, 16)
    assert [delta.completion_tokens for delta in sequence.deltas] == list(range(1, 21))
    assert sequence.reason is FinishReason.LENGTH
    assert sequence.usage == Usage(prompt_tokens=16, cached_tokens=0, completion_tokens=20)


async def test_stop_string_ends_and_is_not_emitted(bench: Bench, loaded: Engine) -> None:
    """A stop string that spans several tokens ends the sequence, and the text before it is all there."""
    text = (await run(bench, loaded)).text()
    stop = text[10:13]
    sequence = await run(bench, loaded, stop=("never", stop))
    assert sequence.text() == text[: text.index(stop)]
    assert sequence.reason is FinishReason.STOP
    assert sequence.usage.completion_tokens >= text.index(stop) + 3


async def test_beginning_of_a_stop_string_is_not_lost(bench: Bench, loaded: Engine) -> None:
    """What might have become a stop string comes out at the end."""
    text = (await run(bench, loaded)).text()
    assert (await run(bench, loaded, stop=(text[-2:] + "#no#",))).text() == text


async def test_cancel_ends_a_running_sequence(bench: Bench, loaded: Engine) -> None:
    """Cancel is answered by the end, and nothing comes after it."""
    prompt = await bench.wait(prepare(loaded, max_tokens=1000))
    sequence = start(loaded, prompt)
    await bench.wait(sequence.until(lambda: len(sequence.deltas) > 3))
    loaded.cancel(sequence.sequence_id)
    await bench.wait(sequence.ended())
    assert sequence.reason is FinishReason.CANCELLED
    assert sequence.usage.completion_tokens == sequence.deltas[-1].completion_tokens < 1000
    before = len(sequence.events)
    await run(bench, loaded)
    assert len(sequence.events) == before


async def test_commands_for_ended_sequences_are_ignored(bench: Bench, loaded: Engine) -> None:
    """A command may cross the end of its sequence on the way."""
    sequence = await run(bench, loaded)
    before = list(sequence.events)
    for command in (loaded.cancel, loaded.pause):
        command(sequence.sequence_id)
    for command_with_grant in (loaded.grant, loaded.resume):
        command_with_grant(sequence.sequence_id, 5000)
    assert (await run(bench, loaded)).text() == sequence.text()
    assert sequence.events == before


async def test_kv_low_comes_once_per_grant(bench: Bench, loaded: Engine) -> None:
    """A sequence asks for more while fewer than 128 tokens remain, and goes on without a pause when it gets it."""
    prompt = await bench.wait(prepare(loaded, max_tokens=300))
    unhurried = (await bench.wait(start(loaded, prompt).ended())).text()
    sequence = start(loaded, prompt, kv_tokens=16 + 150)
    asked_at: list[int] = []

    def on_event(event: object) -> None:
        if event in sequence.lows:
            asked_at.append(sequence.deltas[-1].completion_tokens)
            loaded.grant(sequence.sequence_id, sequence.lows[-1].kv_tokens + 100)

    sequence.on_event = on_event
    await bench.wait(sequence.ended())
    assert [low.kv_tokens for low in sequence.lows] == [166, 266]  # 366 holds all of it
    assert asked_at == [166 - 16 - 127, 266 - 16 - 127]
    assert sequence.pauses == []
    assert sequence.text() == unhurried


async def test_whole_grant_is_never_low(bench: Bench, loaded: Engine) -> None:
    """A sequence whose grant holds all it can become asks for nothing."""
    sequence = await run(bench, loaded, max_tokens=300)
    assert (sequence.lows, sequence.pauses) == ([], [])


@pytest.mark.parametrize("seed", [None, 7])
async def test_border_pauses_and_resume_loses_nothing(bench: Bench, loaded: Engine, seed: int | None) -> None:
    """Without a larger grant a sequence pauses at its border; resumed, it says what an unhurried one says."""
    sampling = SamplingParams(temperature=0) if seed is None else SamplingParams(temperature=1, seed=seed)
    prompt = await bench.wait(prepare(loaded, max_tokens=100))
    unhurried = await bench.wait(start(loaded, prompt, sampling).ended())
    sequence = start(loaded, prompt, sampling, kv_tokens=16 + 10)
    for grant in (26, 43, 77):
        await bench.wait(sequence.until(lambda: bool(sequence.pauses) and isinstance(sequence.events[-1], Paused)))
        assert sequence.pauses[-1].tokens == grant
        assert sequence.deltas[-1].completion_tokens == grant - 16
        loaded.grant(sequence.sequence_id, 1000)  # ignored: it has paused
        loaded.resume(sequence.sequence_id, {26: 43, 43: 77, 77: 1000}[grant])
        await bench.wait(sequence.until(lambda: not isinstance(sequence.events[-1], Paused)))
    await bench.wait(sequence.ended())
    assert sequence.text() == unhurried.text()
    assert sequence.usage.completion_tokens == 100
    assert len(sequence.pauses) == 3


async def test_pause_command_is_answered(bench: Bench, loaded: Engine) -> None:
    """A paused sequence stands still until it is resumed, and then says what an unhurried one says."""
    prompt = await bench.wait(prepare(loaded, max_tokens=200))
    unhurried = await bench.wait(start(loaded, prompt).ended())
    sequence = start(loaded, prompt)
    await bench.wait(sequence.until(lambda: len(sequence.deltas) > 3))
    loaded.pause(sequence.sequence_id)
    await bench.wait(sequence.until(lambda: bool(sequence.pauses)))
    assert sequence.pauses[0].tokens == 16 + sequence.deltas[-1].completion_tokens
    before = len(sequence.events)
    await run(bench, loaded)
    assert len(sequence.events) == before
    loaded.resume(sequence.sequence_id, 1000)
    await bench.wait(sequence.ended())
    assert sequence.text() == unhurried.text()


async def test_cancel_ends_a_paused_sequence(bench: Bench, loaded: Engine) -> None:
    """A sequence need not run to be cancelled."""
    prompt = await bench.wait(prepare(loaded, max_tokens=200))
    sequence = start(loaded, prompt, kv_tokens=20)
    await bench.wait(sequence.until(lambda: bool(sequence.pauses)))
    loaded.cancel(sequence.sequence_id)
    await bench.wait(sequence.ended())
    assert sequence.reason is FinishReason.CANCELLED
    assert sequence.usage.completion_tokens == 4


async def test_prompt_cache_is_hit_and_bounded(bench: Bench, loaded: Engine) -> None:
    """A known prompt is processed only from its last token on; the cache can be trimmed and switched off."""
    first = await run(bench, loaded)
    assert loaded.prompt_cache_bytes > 0
    second = await run(bench, loaded)
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 15)
    assert second.text() == first.text()
    assert await bench.wait(loaded.trim_prompt_cache(0)) == 0
    assert loaded.prompt_cache_bytes == 0
    assert (await run(bench, loaded)).usage.cached_tokens == 0
    loaded.set_prompt_cache_limit(0)
    assert (await run(bench, loaded)).usage.cached_tokens == 0
    assert loaded.prompt_cache_bytes == 0


async def test_cached_kv_is_no_more_than_the_reservation(bench: Bench, loaded: Engine) -> None:
    """What moves into the prompt cache at the end is covered by what was reserved for the row."""
    sequence = await run(bench, loaded, max_tokens=300)
    assert 0 < loaded.prompt_cache_bytes <= loaded.facts.kv.bytes_for(16 + sequence.usage.completion_tokens)


async def test_sequences_of_one_engine_do_not_mix(bench: Bench, loaded: Engine) -> None:
    """Sequences that run together say what each says alone, and seeds decide."""
    prompts = [await bench.wait(prepare(loaded, text)) for text in ("one", "another one", "one")]
    samplings = [SamplingParams(temperature=0, seed=1), SamplingParams(seed=2), SamplingParams(temperature=0, seed=1)]
    together = [start(loaded, prompt, params) for prompt, params in zip(prompts, samplings, strict=True)]
    for sequence in together:
        await bench.wait(sequence.ended())
    alone = [
        await bench.wait(start(loaded, prompt, params).ended())
        for prompt, params in zip(prompts, samplings, strict=True)
    ]
    assert [sequence.text() for sequence in together] == [sequence.text() for sequence in alone]
    assert together[0].text() == together[2].text() != together[1].text()


async def test_unload_fails_what_runs_and_frees_the_memory(baseline_bytes: int, bench: Bench, loaded: Engine) -> None:
    """Sequences of an unloaded model fail as cancelled, paused ones too; its memory is back when `unload` returns."""
    prompt = await bench.wait(prepare(loaded, max_tokens=1000))
    running, paused = start(loaded, prompt), start(loaded, prompt, kv_tokens=20)
    await bench.wait(running.until(lambda: bool(running.deltas and paused.pauses)))
    assert (await bench.wait(bench.backend.memory())).active_bytes >= loaded.facts.weights_bytes
    await bench.wait(bench.backend.unload(loaded))
    for sequence in (running, paused):
        await bench.wait(sequence.ended())
        assert isinstance(sequence.events[-1], Failed)
        assert isinstance(sequence.error, RequestCancelled)
    assert (await bench.wait(bench.backend.memory())).active_bytes < baseline_bytes + 50_000


async def test_two_models_run_side_by_side(bench: Bench, loaded: Engine) -> None:
    """A model that is loaded while another one streams does not disturb it, and both answer at once."""
    prompt = await bench.wait(prepare(loaded, max_tokens=400))
    alone = await bench.wait(start(loaded, prompt).ended())
    stream = start(loaded, prompt)
    await bench.wait(stream.until(lambda: bool(stream.deltas)))
    other = await bench.wait(bench.backend.load(bench.spec("b"), lambda done, total: None))
    assert (await run(bench, other)).reason is FinishReason.LENGTH
    await bench.wait(stream.ended())
    assert stream.text() == alone.text()


async def test_logprobs_cover_the_text(bench: Bench, loaded: Engine) -> None:
    """The tokens whose logprobs were asked for spell the answer."""
    sequence = await run(bench, loaded, logprobs=2)

    entries = [entry for delta in sequence.deltas for entry in delta.logprobs]
    assert b"".join(entry.raw for entry in entries).decode() == sequence.text()
    assert all(entry.logprob is not None and entry.logprob <= 0 for entry in entries)


async def test_prompt_is_scored_once_before_the_answer(bench: Bench, loaded: Engine) -> None:
    """One event holds the logprobs of all prompt tokens; the first token has none."""
    sequence = await run(bench, loaded, logprobs=1, scores_prompt=True)

    (scored,) = sequence.of(PromptScored)
    assert len(scored.logprobs) == sequence.usage.prompt_tokens
    assert [entry.logprob is None for entry in scored.logprobs[:2]] == [True, False]
    assert sequence.events.index(scored) < sequence.events.index(sequence.deltas[0])


async def test_sequences_of_one_prompt_run_side_by_side(bench: Bench, loaded: Engine) -> None:
    """One prepared prompt serves several sequences; each has its own answer and end."""
    prompt = await bench.wait(prepare(loaded, max_tokens=20))
    alone = await bench.wait(start(loaded, prompt).ended())
    several = [start(loaded, prompt) for _ in range(3)]
    for sequence in several:
        await bench.wait(sequence.ended())

    assert [sequence.text() for sequence in several] == [alone.text()] * 3


async def test_end_names_the_stop_string(bench: Bench, loaded: Engine) -> None:
    """Which of several stop strings was met is known; a length is no stop."""
    text = (await run(bench, loaded)).text()
    stopped = await run(bench, loaded, stop=("\x7f", text[3:6]))
    assert (stopped.reason, stopped.finished.stop) == (FinishReason.STOP, text[3:6])
    assert (await run(bench, loaded)).finished.stop is None
