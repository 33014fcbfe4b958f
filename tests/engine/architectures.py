"""All types of models: in all precisions, with the rounding of a GPU, from kept KV (`make test-architectures`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import LayerNorm, RMSNorm
from mlx_lm.sample_utils import greedy_sampler

from mlxd.engine.base import Decoding
from mlxd.engine.batch_decoder import make_decoder
from mlxd.engine.decoder import Entry
from mlxd.engine.kv import CacheMaker, Snapshot
from mlxd.engine.prompt_cache import Found, PromptCache
from tests.engine.test_decoding_check import EXPECTED, check
from tests.support.every_architecture import PRECISIONS, every_type, make_any

_ROUNDING = 2.0**-8  # bfloat16's


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model_type", every_type())
def test_every_type_in_every_precision(model_type: str, precision: str) -> None:
    """A type that answers alike in a batch is decoded in batches, and one that does not is found out."""
    found, passes = check(make_any(model_type, precision))
    assert found.decoding is EXPECTED.get(model_type, Decoding.BATCHED), found.reason
    assert passes == 4 or found.decoding is not Decoding.BATCHED


@pytest.mark.parametrize("start", range(0, 80, 20))
# A wrong position shows little where random attention looks everywhere: not beyond rounding for afm7.
@pytest.mark.parametrize("model_type", [name for name in every_type() if name != "afm7"])
def test_rounding_changes_nothing(model_type: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same is found where all layers round a batch of two to bfloat16 in another way, as a GPU may."""

    def rounded(call: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def run(layer: Any, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
            out = call(layer, x, *arguments, **options)
            return out * (1 + _ROUNDING * mx.random.normal(out.shape)) if out.shape[0] == 2 else out

        return run

    model = make_any(model_type)
    for layer in (Linear, RMSNorm, LayerNorm):
        monkeypatch.setattr(layer, "__call__", rounded(layer.__call__))
    texts = [[(17 + 29 * place + 31 * text + start) % 100 for place in range(9)] for text in range(2)]
    found, _ = check(model, texts)
    assert found.decoding is EXPECTED.get(model_type, Decoding.BATCHED), found.reason


@pytest.mark.parametrize("model_type", every_type())
def test_every_type_continues_from_what_is_kept(model_type: str) -> None:
    """From a checkpoint, from a cut KV and from the end of an answer, a model answers as it does from the beginning."""
    model = make_any(model_type)
    caches = CacheMaker(model)
    prompts = PromptCache(caches, 2**40)
    decoding = EXPECTED.get(model_type, Decoding.BATCHED)
    if not caches.can_merge:
        decoding = Decoding.ONE_BY_ONE
    head, question, other = ([(3 + seed + 29 * place) % 97 for place in range(70)] for seed in (1, 2, 3))

    def answer(tokens: list[int], *, is_cold: bool) -> tuple[int, list[int], list[mx.array]]:
        found = Found(None, 0, 0) if is_cold else prompts.fetch(tokens)
        decoder = make_decoder(model, caches, [], decoding)
        uid = decoder.insert(Entry(tokens, found.known, found.cache, 1000, 5, greedy_sampler, cuts={70, 120}))
        snapshots: dict[int, Snapshot] = {}
        made_tokens: list[int] = []
        logprobs: list[mx.array] = []
        kept = None
        while kept is None:
            prefilled, made = decoder.step(lambda remaining: 48)
            for event in prefilled:
                done = found.known + event.done
                if done in {70, 120}:
                    snapshots[done] = decoder.snapshot(uid)
            for item in made:
                made_tokens += item.tokens
                logprobs += item.logprobs
                kept = item.kept
        if not is_cold:
            prompts.store(kept.tokens, kept.cache, snapshots)
        decoder.close()
        return found.known, made_tokens, logprobs

    first = head + question
    _, said, _ = answer(first, is_cold=False)
    for tokens, known in ((head + other, 70), (first[:120] + other, 120), (first + said + other, 140)):
        warm, cold = answer(tokens, is_cold=False), answer(tokens, is_cold=True)
        assert known <= warm[0] < len(tokens)
        assert warm[1] == cold[1]
        for one, another in zip(warm[2], cold[2], strict=True):
            assert mx.allclose(one, another, rtol=1e-3, atol=1e-3)
