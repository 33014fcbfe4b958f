"""Clients that share a head and leave at random, on a real device thread: the others hear what cold runs say."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from mlxd.engine.base import Engine, FinishReason, PreparedPrompt, SchedulingParams, SequenceEvent
from mlxd.engine.device import Device
from tests.engine.bench import load_spec
from tests.engine.test_reuse import answer, prompt, words
from tests.support.model_on_disk import write_any_model
from tests.support.sequence import Recorder, start


def join(engine: Engine, asked: PreparedPrompt, patience: int | None) -> Recorder:
    """Send a request whose client leaves after so many events; None stays."""
    row = start(engine, asked, logprobs=0, checkpoint_bytes=10**9)

    def leave(_: SequenceEvent) -> None:
        if len(row.events) == patience and not row.has_ended:
            engine.cancel(row.sequence_id)

    row.on_event = leave
    if patience == 0:
        engine.cancel(row.sequence_id)
    return row


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_next"])
async def test_who_stays_hears_what_a_cold_run_says(model_type: str, device: Device, tmp_path: Path) -> None:
    """Whoever leaves, before its prompt, within it or in its answer, changes nothing for those that share its head."""
    rng = random.Random(model_type)
    path = write_any_model(tmp_path / "model", model_type)
    warm, cold = [
        await device.load(load_spec(path, model_id=name, prompt_cache_limit_bytes=n_bytes), lambda done, total: None)
        for name, n_bytes in [("warm", 2_000_000), ("cold", 0)]
    ]
    device.set_scheduling(SchedulingParams(prefill_step_tokens=48, target_gap_ms=30))
    rows: list[tuple[PreparedPrompt, Recorder]] = []
    for number in range(3):
        wave = []
        for _ in range(8):
            head = words(20 + rng.choice([number, number, rng.randrange(number + 1)]), 300)
            asked = prompt(head, words(rng.randrange(4), 60), words(4 + rng.randrange(10), 9), max_tokens=6)
            wave.append((asked, join(warm, asked, rng.choice([None, None, None, 0, 2, 4, 6, 8]))))
        await wave[rng.randrange(8)][1].ended()
        rows += wave
    await asyncio.gather(*(row.ended() for _, row in rows))
    stayed = [(asked, row) for asked, row in rows if row.reason is not FinishReason.CANCELLED]
    assert 5 < len(stayed) < len(rows)
    assert sum(row.usage.cached_tokens for _, row in stayed) > 0
    for asked, row in stayed:
        alone = await start(cold, asked, logprobs=0).ended()
        assert [token for token, _ in answer(row)] == [token for token, _ in answer(alone)]
        assert [number for _, number in answer(row)] == pytest.approx([number for _, number in answer(alone)], abs=1e-4)
