"""KV as configs estimate it, as the probe measures it, and as the running engine holds it."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import pytest

from mlxd.engine.kv import CacheMaker
from mlxd.kv_estimate import Confidence, estimate_kv
from tests.engine.bench import WriteModel
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.tiny_architecture import ARCHITECTURES, make_model

# One of each kind: grouped-query with windows, latent, linear attention, state beside attention, nothing but states.
RUN = ("llama", "deepseek_v3", "qwen3_next", "falcon_h1", "mamba2")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_config_tells_what_the_caches_are(model_type: str) -> None:
    """The estimate is the very shape that the model's own caches have: bytes per token, windows, states."""
    config = ARCHITECTURES[model_type]
    measured, _ = CacheMaker(make_model(config)).probe()
    estimate = estimate_kv(config, 4, 1_000_000)

    assert estimate.confidence is Confidence.HEADER
    assert set(estimate.shape.groups) == set(measured.groups)
    assert estimate.shape.fixed_bytes == measured.fixed_bytes


def test_sizes_follow_the_activations() -> None:
    """Half-precision activations make half the KV; states stay at four bytes a number."""
    config = ARCHITECTURES["qwen3_next"]
    model = make_model(config)
    model.set_dtype(mx.bfloat16)
    measured, _ = CacheMaker(model).probe()
    shape = estimate_kv(config, 2, 1_000_000).shape

    assert shape.groups == measured.groups
    assert measured.fixed_bytes <= shape.fixed_bytes < 1.1 * measured.fixed_bytes


@pytest.mark.parametrize("step_tokens", [100, 2048])
@pytest.mark.parametrize("model_type", RUN)
def test_the_running_batch_stays_within_the_estimate(
    write_model: WriteModel, model_type: str, step_tokens: int
) -> None:
    """What the caches of a batch hold is never more than the ledger's sum, and that is at most 2.5 times as much."""
    config = ARCHITECTURES[model_type]
    model = make_model(config)
    mx.eval(model.parameters())
    measured, vocab_size = CacheMaker(model).probe()
    shape = estimate_kv(config, 4, 1_000_000).shape
    tiny = load_now(write_model())
    facts = dataclasses.replace(tiny.facts, kv=measured, vocab_size=vocab_size)
    stepped = SteppedModel(
        dataclasses.replace(tiny, model=model, facts=facts),
        prefill_step_tokens=step_tokens,
        target_gap_ms=10_000,
    )
    prompts = (280, 150, 20)
    for length in prompts:
        stepped.start("a" * length, max_tokens=15)
    most_bytes = 0
    while stepped.model.is_busy:
        stepped.step()
        most_bytes = max(most_bytes, stepped.kv_bytes)

    reserved_bytes = shape.batch_bytes([length + 15 for length in prompts])
    assert 0 < most_bytes <= reserved_bytes <= 2.5 * most_bytes
