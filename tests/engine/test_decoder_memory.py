"""What rows hold in memory at most, whatever they do: the sum that the pool reserves for them is a bound of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import greedy_sampler

from mlxd.engine.base import Decoding
from mlxd.engine.batch import split
from mlxd.engine.batch_decoder import make_decoder
from mlxd.engine.decoder import Decoder, Entry
from mlxd.engine.kv import CacheMaker
from mlxd.engine.prompt_cache import PromptCache
from tests.support.every_architecture import config_of, make_model

# Much KV beside small weights and short computations: 33 kB per token.
LAYERS = 16
LARGE_KV = config_of("llama") | {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "layer_types": ["full_attention"] * LAYERS,
}
# What a decoder copies at a time here, so that small batches do as large ones, and with it attention and logits.
MOST_COPIED_BYTES = 1_000_000
WORKSPACE_BYTES = 6_000_000
# Tokens beyond a prompt.
ANSWER_TOKENS = 18


@pytest.fixture(scope="module")
def large_kv() -> Any:
    """A model whose KV is nearly all that it holds."""
    model = make_model(LARGE_KV)
    mx.eval(model.parameters())
    return model


class Measured:
    """A decoder whose rows are counted as the pool counts them."""

    def __init__(self, model: Any) -> None:
        self.caches = CacheMaker(model)
        self.shape = self.caches.probe()[0]
        self.decoder: Decoder = make_decoder(model, self.caches, [], Decoding.BATCHED)
        self.grants: list[int] = []
        settle()
        self.base_bytes = mx.get_active_memory()
        mx.reset_peak_memory()

    @property
    def reserved_bytes(self) -> int:
        """What the pool reserves for all rows that were ever in."""
        return self.shape.batch_bytes(self.grants)

    @property
    def peak_bytes(self) -> int:
        """The most that was held since."""
        return mx.get_peak_memory() - self.base_bytes

    def start(self, prompt_tokens: int, max_tokens: int = ANSWER_TOKENS, kv_tokens: int | None = None) -> int:
        """Insert a row; its grant is all that it can hold unless it is given."""
        self.grants.append(prompt_tokens + max_tokens if kv_tokens is None else kv_tokens)
        prompt = [20 + number % 80 for number in range(prompt_tokens)]
        return self.decoder.insert(Entry(prompt, 0, None, self.grants[-1], max_tokens, greedy_sampler))

    def run(self, steps: int, chunk: int = 96) -> int:
        """Step; return how many rows have ended."""
        return sum(made.end is not None for _ in range(steps) for made in self.decoder.step(lambda remaining: chunk)[1])


def settle() -> None:
    """Let everything go that nothing needs."""
    mx.synchronize()
    gc.collect()
    mx.clear_cache()


@pytest.fixture
def rows(large_kv: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    """A decoder of the large KV."""
    monkeypatch.setattr("mlxd.engine.batch._MOST_COPIED_BYTES", MOST_COPIED_BYTES)
    measured = Measured(large_kv)
    yield measured
    measured.decoder.close()


def test_no_peak_when_a_row_joins_others(rows: Measured) -> None:
    """A row that comes late joins those that decode, and those whose prompts are under way."""
    rows.start(480)
    rows.start(480)
    rows.run(3)
    rows.start(490)
    rows.run(4)
    rows.start(490)
    rows.run(12)
    assert rows.peak_bytes <= rows.reserved_bytes + WORKSPACE_BYTES


def test_no_peak_when_a_row_is_removed_or_grows(rows: Measured) -> None:
    """A row leaves those that it decodes with, for good or for a longer batch."""
    uids = [rows.start(480) for _ in range(4)]
    rows.run(8)
    rows.decoder.remove([uids[0]])
    rows.run(1)
    rows.decoder.grant(uids[1], 9000)
    rows.run(2)
    assert rows.peak_bytes <= rows.reserved_bytes + WORKSPACE_BYTES


def test_few_layers_are_copied_at_a_time_when_most_rows_leave_a_prefill_batch(rows: Measured) -> None:
    """Rows that part from one that has just begun take most of the KV with them, and that is what is copied."""
    for _ in range(3):
        rows.start(480)
    rows.run(4)
    rows.start(490)
    rows.run(1, chunk=32)
    (lane,) = rows.decoder._lanes.values()  # type: ignore[attr-defined]
    settle()
    held_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    taken = split(lane.batch, [0, 1, 2], [3])
    mx.eval([layer.state for layer in taken.prompt_cache])
    assert [layer.offset.tolist() for layer in taken.prompt_cache] == [[416] * 3] * LAYERS
    copied_bytes = sum(layer.nbytes for layer in taken.prompt_cache)
    assert copied_bytes > 30 * MOST_COPIED_BYTES
    # One layer is as large as two or three times what is copied at least, and the next one is made beside it.
    assert mx.get_peak_memory() - held_bytes < 10 * MOST_COPIED_BYTES


@pytest.mark.parametrize("model_type", ["mamba2", "gpt_oss", "falcon_h1"])
def test_a_stored_row_keeps_no_batch(model_type: str) -> None:
    """The KV of rows that ended at different steps of one batch is held as large as the prompt cache says."""
    model = make_model(config_of(model_type) | {"ssm_state_size": 128, "mamba_d_state": 128})
    mx.eval(model.parameters())
    caches = CacheMaker(model)
    decoder = make_decoder(model, caches, [], Decoding.BATCHED)
    prompts = PromptCache(caches, 10**9)
    settle()
    before_bytes = mx.get_active_memory()
    for number in range(8):
        decoder.insert(Entry([20 + number] * 40, 0, None, 80, 4 + 2 * number, greedy_sampler))
    stored = 0
    while stored < 8:
        for made in decoder.step(lambda remaining: 64)[1]:
            if made.kept is not None:
                prompts.store(made.kept.tokens, made.kept.cache)
                stored += 1
    decoder.close()
    del made
    settle()
    held_bytes = mx.get_active_memory() - before_bytes
    assert prompts.stored_bytes > 0
    # MLX shares a buffer that is up to 16 kB larger than what is used of it.
    assert held_bytes <= 1.25 * prompts.stored_bytes
