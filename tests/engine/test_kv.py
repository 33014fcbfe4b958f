"""KV as models tell it by their configs, as the probe measures it, and as the running engine holds it."""

from __future__ import annotations

import dataclasses
import gc
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from mlxd.engine import kv_shape
from mlxd.engine.kv import CacheMaker, allocated_bytes
from tests.engine.bench import WriteModel
from tests.support.every_architecture import config_of, every_type, make_model
from tests.support.processes import PROCESSES
from tests.support.stepped_model import SteppedModel, load_now

# One of each kind: grouped-query with windows, latent, linear attention, state beside attention, nothing but states.
RUN = ("llama", "deepseek_v3", "qwen3_next", "falcon_h1", "mamba2")


@pytest.mark.parametrize("model_type", every_type())
def test_a_process_tells_what_the_caches_are(model_type: str) -> None:
    """A model built by its config alone has the very shape of the loaded one: bytes per token, windows, states."""
    config = config_of(model_type)
    measured, _ = CacheMaker(make_model(config)).probe()
    assert PROCESSES.shape({"module": model_type, "config": config, "dtype": "float32"}) == measured


def test_sizes_follow_the_activations() -> None:
    """Half-precision activations make half the KV; a state has the precision of the weights that keep theirs."""
    config = config_of("qwen3_next")
    whole, half = (
        PROCESSES.shape({"module": "qwen3_next", "config": config, "dtype": dtype}) for dtype in ("float32", "bfloat16")
    )
    assert whole is not None
    assert half is not None
    assert [(2 * per_token, cap) for per_token, cap in half.groups] == list(whole.groups)
    assert whole.fixed_bytes * 0.9 < half.fixed_bytes < whole.fixed_bytes


@pytest.mark.parametrize("step_tokens", [100, 2048])
@pytest.mark.parametrize("model_type", RUN)
def test_the_running_batch_stays_within_the_estimate(
    write_model: WriteModel, model_type: str, step_tokens: int
) -> None:
    """What the caches of a batch hold is never more than the ledger's sum, and that is at most 2.5 times as much."""
    config = config_of(model_type)
    model = make_model(config)
    mx.eval(model.parameters())
    measured, vocab_size = CacheMaker(model).probe()
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

    reserved_bytes = measured.batch_bytes([length + 15 for length in prompts])
    assert 0 < most_bytes <= reserved_bytes <= 2.5 * most_bytes


def wide_model(write_model: WriteModel) -> SteppedModel:
    """Return a model whose KV is far larger than everything else that a step needs; prompts go in short chunks."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64}
    model = make_model(config_of("llama") | heads | {"num_hidden_layers": 8, "layer_types": ["full_attention"] * 8})
    mx.eval(model.parameters())
    measured, vocab_size = CacheMaker(model).probe()
    tiny = load_now(write_model())
    facts = dataclasses.replace(tiny.facts, kv=measured, vocab_size=vocab_size)
    loaded = dataclasses.replace(tiny, model=model, facts=facts)
    return SteppedModel(loaded, prefill_step_tokens=64, target_gap_ms=10_000)


@pytest.mark.parametrize("short_tokens", [8192, 256])
def test_no_step_needs_more_than_is_reserved(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch, short_tokens: int
) -> None:
    """Memory passes the ledger's sum by no more than a few layers, when rows are split, aligned or join too."""
    monkeypatch.setattr(kv_shape, "_SHORT_TOKENS", short_tokens)
    stepped = wide_model(write_model)
    mx.synchronize()
    gc.collect()
    before_bytes = mx.get_active_memory()
    lengths = (400, 300, 250, 30)
    rows = [stepped.start("a" * length, max_tokens=30, kv_tokens=length + 10) for length in lengths]
    grants = [length + 10 for length in lengths]
    reserved_bytes = stepped.loaded.facts.kv.batch_bytes(grants)
    most_active_bytes = most_bytes = 0
    while stepped.model.is_busy:
        mx.reset_peak_memory()
        stepped.step()
        most_bytes = max(most_bytes, mx.get_peak_memory() - before_bytes)
        most_active_bytes = max(most_active_bytes, mx.get_active_memory() - before_bytes)
    assert all(row.pauses for row in rows)
    assert most_active_bytes <= reserved_bytes
    assert most_bytes <= reserved_bytes + 16_000_000


def test_a_short_row_holds_nothing_for_a_long_one(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long row's neighbors cost what they cost without it, in the ledger and on the device."""
    monkeypatch.setattr(kv_shape, "_SHORT_TOKENS", 512)
    stepped = wide_model(write_model)
    kv = stepped.loaded.facts.kv
    stepped.start("a" * 600, max_tokens=60)
    while stepped.decoding_rows < 1:
        stepped.step()
    alone_bytes = stepped.kv_bytes
    for _ in range(3):
        stepped.start("hi", max_tokens=20)
    while stepped.decoding_rows < 4:
        stepped.step()
    grown_bytes = stepped.kv_bytes - alone_bytes
    assert 0 < grown_bytes <= 3 * kv.bytes_for(22)
    assert kv.batch_bytes([660, 22, 22, 22]) == kv.batch_bytes([660]) + 3 * kv.bytes_for(22)


def test_a_small_copy_does_not_hold_what_it_was_taken_from() -> None:
    """What is kept of one row, or of a few tokens of latent KV, has memory of its own, however small both are."""
    caches = CacheMaker(SimpleNamespace(make_cache=lambda: [KVCache(), ArraysCache(1)]))
    gc.collect()
    mx.synchronize()
    limit_bytes = mx.set_cache_limit(0)
    mx.clear_cache()
    before_bytes = mx.get_active_memory()
    latent, states = KVCache(), ArraysCache(1)
    latent.update_and_fetch(mx.zeros((1, 1, 100, 8)), mx.zeros((1, 1, 100, 8)))
    states.cache = [mx.zeros((8, 100))]
    mx.eval(latent.state, states.state)
    slices = caches.slices([latent, states], 10, 20)
    mx.eval(slices)
    kept = caches.snapshot([latent, states], row=3)
    del latent, states
    gc.collect()
    mx.synchronize()
    held_bytes = mx.get_active_memory() - before_bytes
    mx.set_cache_limit(limit_bytes)
    assert held_bytes == allocated_bytes([slices, kept]) == 2 * 10 * 8 * 4 + 100 * 4
