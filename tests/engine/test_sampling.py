"""`engine.sampling`: what is drawn, from what, and by whom."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import greedy_sampler

from mlxd.engine.base import SamplingParams
from mlxd.engine.memory import is_gpu
from mlxd.engine.sampling import RowSampler, SamplerCache, logits_processors

PROBABILITIES = (0.4, 0.3, 0.2, 0.06, 0.04)
LOGPROBS = mx.log(mx.array([PROBABILITIES]))


@pytest.fixture
def samplers() -> SamplerCache:
    """A vocabulary of five tokens; XTC never removes token 2."""
    return SamplerCache(5, [2])


def drawn(sampler: RowSampler) -> int:
    """Draw once."""
    token: Any = sampler(LOGPROBS).item()
    return int(token)


def draws(samplers: SamplerCache, params: SamplingParams, count: int = 400) -> Counter[int]:
    """Draw *count* times, with a seed."""
    sampler = samplers.row_sampler(replace(params, seed=11))
    return Counter(drawn(sampler) for _ in range(count))


def test_seeded_draws_follow_the_distribution(samplers: SamplerCache) -> None:
    """The frequencies are those of the model at temperature 1."""
    counts = draws(samplers, SamplingParams(), 3000)
    assert [counts[token] / 3000 for token in range(5)] == pytest.approx(PROBABILITIES, abs=0.03)


@pytest.mark.parametrize(
    ("params", "left"),
    [
        (SamplingParams(top_p=0.69), {0, 1}),
        (SamplingParams(top_k=3), {0, 1, 2}),
        (SamplingParams(top_k=5), {0, 1, 2, 3, 4}),
        (SamplingParams(top_k=500), {0, 1, 2, 3, 4}),
        (SamplingParams(min_p=0.4), {0, 1, 2}),
        (SamplingParams(top_p=0.69, top_k=1), {0}),
        (SamplingParams(xtc_probability=1.0, xtc_threshold=0.1), {2, 3, 4}),
        (SamplingParams(xtc_probability=0.0, xtc_threshold=0.1), {0, 1, 2, 3, 4}),
    ],
)
def test_filters_leave_what_they_say(samplers: SamplerCache, params: SamplingParams, left: set[int]) -> None:
    """Only the tokens that a filter leaves are drawn, and all of these."""
    assert set(draws(samplers, params)) == left


def test_xtc_acts_as_often_as_it_is_told(samplers: SamplerCache) -> None:
    """With a probability of one half, the likely tokens come half as often."""
    counts = draws(samplers, SamplingParams(xtc_probability=0.5, xtc_threshold=0.1), 2000)
    assert (counts[0] + counts[1]) / 2000 == pytest.approx(0.35, abs=0.04)


def test_temperature_flattens(samplers: SamplerCache) -> None:
    """High temperatures draw unlikely tokens more often, low ones less."""
    hot, cold = (draws(samplers, SamplingParams(temperature=value))[4] for value in (5.0, 0.2))
    assert hot > 40
    assert cold == 0


def test_nth_draw_depends_on_seed_and_n(samplers: SamplerCache) -> None:
    """A sampler can begin at any place of its sequence, which other rows' draws do not move."""
    first, other = (samplers.row_sampler(SamplingParams(seed=5)) for _ in range(2))
    sequence = [drawn(first) for _ in range(30)]
    assert [drawn(other) for _ in range(30)] == sequence
    later = samplers.row_sampler(SamplingParams(seed=5), 10)
    mx.random.seed(0)
    assert [drawn(later) for _ in range(20)] == sequence[10:]


@pytest.mark.parametrize("seed", [0, -1, 2**32, 2**64 - 1])
def test_any_seed_is_its_own(samplers: SamplerCache, seed: int) -> None:
    """All 64 bits count, zero and negative seeds too."""

    def sequence(value: int) -> list[int]:
        sampler = samplers.row_sampler(SamplingParams(seed=value))
        return [drawn(sampler) for _ in range(40)]

    assert sequence(seed) == sequence(seed)
    assert sequence(seed) != sequence(seed + 1)


def test_samplers_are_shared_by_their_parameters(samplers: SamplerCache) -> None:
    """Equal parameters share one object while somebody holds it; greedy ones share mlx-lm's; seeds share none."""
    params = SamplingParams(temperature=0.7, top_p=0.9)
    sampler = samplers.row_sampler(params)
    assert samplers.row_sampler(replace(params, presence_penalty=1.0)) is sampler
    assert samplers.row_sampler(replace(params, top_p=0.8)) is not sampler
    assert samplers.row_sampler(replace(params, seed=1)) is not samplers.row_sampler(replace(params, seed=1))
    assert samplers.row_sampler(SamplingParams(temperature=0)) is greedy_sampler
    assert samplers.row_sampler(SamplingParams(top_p=0, seed=3)) is greedy_sampler


def test_shared_sampler_draws_for_every_row(samplers: SamplerCache) -> None:
    """One call gives a token per row of the batch."""
    sampler = samplers.row_sampler(SamplingParams(top_k=2, top_p=0.9, min_p=0.1))
    assert sampler(mx.concatenate([LOGPROBS] * 6)).shape == (6,)


def test_sampling_compiles_nothing_on_the_cpu(samplers: SamplerCache) -> None:
    """Off the GPU, filters run without `mx.compile`, and it is on again afterwards for the models."""
    if is_gpu():
        pytest.skip("compiling is quick there")
    calls = []

    @mx.compile
    def probe(value: mx.array) -> mx.array:
        calls.append(1)
        return value + 1

    draws(samplers, SamplingParams(top_p=0.5, top_k=2, min_p=0.1), 2)
    probe(mx.array(1))
    probe(mx.array(2))
    assert len(calls) == 1  # traced once: compiling is on


def test_neutral_parameters_need_no_processor() -> None:
    """A batch whose rows have none is sampled in one call."""
    assert logits_processors(SamplingParams(), 3, [4]) == []
    busy = SamplingParams(
        repetition_penalty=1.1, presence_penalty=-0.5, frequency_penalty=0.5, logit_bias=((1, 2.0), (3, -100.0))
    )
    assert len(logits_processors(busy, 3, [4])) == 4


def test_an_answer_that_is_to_go_on_has_no_end() -> None:
    """The tokens that end an answer cannot be chosen; the others are as likely as before."""
    (processor,) = logits_processors(SamplingParams(ignore_eos=True), 3, [1, 4])
    assert processor(mx.array([0]), mx.zeros((1, 5))).tolist() == [[0, -math.inf, 0, 0, -math.inf]]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(presence_penalty=0.5), [0, 0, 0, -0.5, -0.5]),
        (SamplingParams(frequency_penalty=0.5), [0, 0, 0, -1.0, -0.5]),
        (SamplingParams(logit_bias=((1, 2.0), (3, -1.0))), [0, 2.0, 0, -1.0, 0]),
    ],
)
def test_penalties_count_the_answer_alone(params: SamplingParams, expected: list[float]) -> None:
    """Of the context 0 1 2 | 3 4 3, the prompt's three tokens are not penalized; before the answer nothing is."""
    (processor,) = logits_processors(params, 3, [4])
    tokens = mx.array([0, 1, 2, 3, 4, 3])
    assert processor(tokens, mx.zeros((1, 5))).tolist() == [expected]
    if not params.logit_bias:
        assert processor(tokens[:3], mx.zeros((1, 5))).tolist() == [[0.0] * 5]
