"""Samplers and logits processors for the rows of a batch; runs on the device thread.

A batch samples in one call only when its rows hold the *same* sampler object, hence the cache by parameters. A row
with a seed has an object of its own. `protocol/settings.py` has the bounds of what mlx-lm's functions take.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakValueDictionary

import mlx.core as mx
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    apply_xtc,
    greedy_sampler,
    make_frequency_penalty,
    make_presence_penalty,
    make_repetition_penalty,
)

from mlxd.engine.base import SamplingParams
from mlxd.engine.memory import is_gpu

RowSampler = Callable[[mx.array], mx.array]
LogitsProcessor = Callable[[mx.array, mx.array], mx.array]

# Below this, 1 / temperature leaves float32's useful range, and the choice is the greedy one anyway.
_GREEDY_BELOW = 1e-5
# More than any context: a penalty looks at the whole answer, as OpenAI defines it. mlx-lm's own default is 20 tokens.
_WHOLE_ANSWER = 2**31
_MASK_64 = 2**64 - 1


class Guard:
    """A sampler or a logits processor that never raises: in a step of a batch that would cost every row its tokens.

    `failure` is what it has raised. The rows that hold it look, and fail: what it returns from then on is no choice.
    """

    def __init__(self, call: Callable[..., mx.array], instead: Callable[..., mx.array]) -> None:
        """Call *call*, and *instead* once that has failed."""
        self._call = call
        self._instead = instead
        self.failure: Exception | None = None

    def __call__(self, *arguments: mx.array) -> mx.array:
        """Return what is chosen."""
        if self.failure is None:
            try:
                return self._call(*arguments)
            except Exception as error:  # noqa: BLE001 the owner of its rows tells what it means
                self.failure = error
        return self._instead(*arguments)


class Sampler:
    """Chooses the next token of every row that has these parameters and no seed."""

    def __init__(self, params: SamplingParams, vocab_size: int, xtc_exempt: Sequence[int]) -> None:
        """Take checked parameters; XTC never removes the tokens *xtc_exempt*."""
        self._params = params
        self._top_k = params.top_k if params.top_k < vocab_size else 0
        self._xtc_exempt = list(xtc_exempt)

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return a token per row of *logprobs* [rows, vocabulary]."""
        return mx.random.categorical(self.scores(logprobs, random.random()))  # noqa: S311 not a secret

    def scores(self, logprobs: mx.array, coin: float) -> mx.array:
        """Return the logits to draw from; XTC acts when *coin* (0..1) is below its probability."""
        params = self._params
        with _interpreted():
            if params.top_p < 1:
                logprobs = apply_top_p(logprobs, params.top_p)
            if params.min_p > 0:
                logprobs = apply_min_p(logprobs, params.min_p)
            if coin < params.xtc_probability:
                logprobs = apply_xtc(logprobs, 1.0, params.xtc_threshold, self._xtc_exempt)
            if self._top_k > 0:
                logprobs = apply_top_k(logprobs, self._top_k)
        return logprobs * (1 / params.temperature)


class SeededSampler:
    """Chooses the tokens of one row; the n-th choice depends on the seed and on n, whatever else is in the batch."""

    def __init__(self, sampler: Sampler, seed: int, drawn: int) -> None:
        """Draw from what *sampler* scores, after *drawn* choices."""
        self._sampler = sampler
        self._base = _mixed(seed & _MASK_64)
        self._drawn = drawn

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Return the token for *logprobs* [1, vocabulary]."""
        self._drawn += 1
        bits = _mixed(self._base + self._drawn * 0x9E3779B97F4A7C15 & _MASK_64)
        key = mx.array([bits >> 32, bits & 0xFFFFFFFF], dtype=mx.uint32)
        coin = _mixed(bits) / 2**64
        return mx.random.categorical(self._sampler.scores(logprobs, coin), key=key)


class SamplerCache:
    """Hands out samplers of one model: the same object for the same parameters, as long as a row holds it."""

    def __init__(self, vocab_size: int, xtc_exempt: Sequence[int]) -> None:
        """Take the size of the logits and the tokens that XTC never removes."""
        self._vocab_size = vocab_size
        self._xtc_exempt = xtc_exempt
        self._shared: WeakValueDictionary[SamplingParams, Guard] = WeakValueDictionary()

    def row_sampler(self, params: SamplingParams, drawn: int = 0) -> RowSampler:
        """Return what a row with *params* samples with that has *drawn* tokens."""
        # mlx-lm takes top_p 0 for "off"; here it is a value, and keeps the most likely token only.
        if params.temperature < _GREEDY_BELOW or params.top_p == 0:
            return greedy_sampler  # type: ignore[no-any-return]
        key = SamplingParams(
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            xtc_probability=params.xtc_probability,
            xtc_threshold=params.xtc_threshold,
        )
        sampler = Sampler(key, self._vocab_size, self._xtc_exempt)
        if params.seed is not None:
            return Guard(SeededSampler(sampler, params.seed, drawn), greedy_sampler)
        shared = self._shared.get(key)
        if shared is None or shared.failure is not None:
            shared = self._shared[key] = Guard(sampler, greedy_sampler)
        return shared


def logits_processors(params: SamplingParams, prompt_tokens: int, ends: Sequence[int]) -> list[LogitsProcessor]:
    """Return what changes the logits of a row before sampling, none where the parameters are neutral.

    The presence and frequency penalties count the answer (OpenAI's definition); the repetition penalty looks at the
    last 20 tokens, the prompt's included (mlx-lm's). *ends* are the tokens that end an answer.
    """
    processors: list[LogitsProcessor] = []
    if params.ignore_eos and ends:
        forbidden = mx.array(list(ends))
        processors.append(lambda _, logits: logits.at[:, forbidden].add(mx.array(-mx.inf, logits.dtype)))
    if params.logit_bias:
        ids = mx.array([token for token, _ in params.logit_bias])
        biases = mx.array([bias for _, bias in params.logit_bias])
        processors.append(lambda _, logits: logits.at[:, ids].add(biases.astype(logits.dtype)))
    if params.repetition_penalty != 1:
        processors.append(make_repetition_penalty(params.repetition_penalty))
    if params.presence_penalty != 0:
        presence = make_presence_penalty(params.presence_penalty, _WHOLE_ANSWER)
        processors.append(lambda tokens, logits: presence(tokens[prompt_tokens:], logits))
    if params.frequency_penalty != 0:
        frequency = make_frequency_penalty(params.frequency_penalty, _WHOLE_ANSWER)
        processors.append(lambda tokens, logits: frequency(tokens[prompt_tokens:], logits))
    return processors


@contextmanager
def _interpreted() -> Iterator[None]:
    """Keep `mx.compile` out of the way off the GPU.

    There it starts the system's C++ compiler for each new filter and shape: seconds in which no row moves, for a gain
    of a few percent.
    """
    if is_gpu() or "MLX_DISABLE_COMPILE" in os.environ:
        yield
        return
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()


def _mixed(value: int) -> int:
    """Return 64 well-mixed bits (SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK_64
    return value ^ (value >> 31)
