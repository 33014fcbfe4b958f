"""Random histories of all that can happen to rows: they say what cold runs say, and nothing is held uncounted."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import mlx.core as mx
import pytest
from hypothesis import settings

from mlxd.engine.base import FinishReason, PreparedPrompt
from tests.engine.bench import WriteModel
from tests.engine.test_reuse import PLENTY, Load, check_answer, loader, prompt, words
from tests.support.sequence import Recorder
from tests.support.stepped_model import SteppedModel, load_now

# Types that differ in their caches: plain, latent, windows, chunks, states, lists of these, and one's own.
KINDS = [
    "qwen3",
    "deepseek_v3",
    "gemma3_text",
    "llama4",
    "lfm2",
    "qwen3_next",
    "kimi_linear",
    "mamba2",
    "nemotron_h",
    "recurrent_gemma",
    "gear",
    "falcon_h1",
    "baichuan_m1",
    "longcat_flash_ngram",
    "deepseek_v41",
]
# `make soak-histories` lives a hundred times as long.
N_EVENTS = settings().max_examples * 35 // 100


@pytest.fixture(scope="module", name="load")
def _load(write_model: WriteModel) -> Load:
    """Return what makes a tiny model of a type."""
    return loader(load_now(write_model()))


@pytest.fixture(autouse=True)
def exact_buffers() -> Iterator[None]:
    """Let MLX make a new buffer for each array: one that is used again may be up to twice as large."""
    limit_bytes = mx.set_cache_limit(0)
    mx.clear_cache()
    yield
    mx.set_cache_limit(limit_bytes)


@pytest.mark.parametrize("model_type", KINDS)
def test_random_histories_say_what_cold_runs_say(model_type: str, load: Load) -> None:
    """Through hits, evictions, limits, pauses, cancels and rows side by side, each answer is that of a cold run.

    In the end the prompt cache holds the memory that it counts.
    """
    rng = random.Random(model_type)
    loaded = load(model_type)
    expected: dict[tuple[int, ...], Recorder] = {}
    gc.collect()
    mx.synchronize()
    base_bytes = mx.get_active_memory()
    stepped = SteppedModel(loaded, prompt_cache_bytes=2_000_000, prefill_step_tokens=48)
    started: list[tuple[PreparedPrompt, Recorder]] = []
    for _ in range(N_EVENTS):
        running = [(asked, row) for asked, row in started if not row.has_ended]
        event = rng.random()
        if event < 0.4 and len(running) < 5:
            parts = [
                words(rng.randrange(3), 80 * rng.randrange(1, 5)),
                words(rng.randrange(4), 40),
                words(rng.randrange(9), 9),
            ]
            asked = prompt(*parts[: rng.randrange(1, 4)], max_tokens=6)
            started.append((asked, stepped.start(asked, logprobs=0, checkpoint_bytes=rng.choice([0, PLENTY]))))
        elif event < 0.46 and running:
            stepped.model.cancel(rng.choice(running)[1].sequence_id)
        elif event < 0.52 and running:
            asked, row = rng.choice(running)
            stepped.model.pause(row.sequence_id)
            stepped.step()
            stepped.model.resume(row.sequence_id, asked.final_tokens)
        elif event < 0.56:
            stepped.model.prompts.trim(rng.randrange(2_000_000))
        elif event < 0.6:
            stepped.model.prompts.set_limit(rng.choice([0, 500_000, 2_000_000]))
        else:
            stepped.step(rng.randrange(1, 6))
        assert stepped.model.prompts.stored_bytes <= stepped.model.prompts.max_bytes
    stepped.run(*(row for _, row in started))
    held_bytes = held_after(stepped) - base_bytes
    answers = [(asked, row) for asked, row in started if row.reason is not FinishReason.CANCELLED]
    assert len(answers) > 3
    for asked, row in answers:
        if asked.tokens not in expected:
            expected[asked.tokens] = SteppedModel(loaded).say(asked, logprobs=0)
        check_answer(model_type, row, expected[asked.tokens], is_alone=False)
    assert held_bytes <= 1.01 * stepped.model.prompts.stored_bytes + 2_000


def held_after(stepped: SteppedModel) -> int:
    """Return what MLX holds when nothing runs."""
    stepped.step()
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()
