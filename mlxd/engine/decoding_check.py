"""Finds out how a model just loaded may be decoded: rows must say in a batch what they say alone.

Some of mlx-lm's models answer wrongly in a batch, without an error: padding runs through their state, or a mask has one
axis too few. So two prompts of unequal length go through the model alone, and then together through the very decoder
that is to serve them. A way of decoding that was not seen to agree is not used.

A check takes at most four short passes. Rounding differs with the shape of a batch, and a router of experts that is
undecided may then choose another one, which changes the logits of one place by up to half. So a disagreement counts
only if a second text shows it too, in four more.

Two things are compared, each in a way that rounding hardly reaches and a wrong batch cannot miss:

* The logits of the next token, by the root mean square of their difference as a share of their own spread. It may be
  0.1, or four times what rounding makes of the prompts' own tokens in the same passes (none of them sees padding), but
  no more than 0.3. Seen of more than 100 types that agree: 1e-6 in float32, 0.03 with 4 bits and bfloat16 activations
  (attention that takes another path for single tokens), 0.02 on average and 0.08 at most when all layers round to
  bfloat16 anew. Of those that do not agree: 0.1 (wrong positions, which random weights hardly look at) to 1.2.
* The states that recurrent layers keep of the shorter prompt, in the layer that differs least, as rounding adds up from
  layer to layer. It may be 0.2. Seen: 0.01 at most with bfloat16's rounding; 1 and more where padding went through the
  state, however little of that the logits show.

The memory that it takes is the KV of two rows of one step (256 tokens) and the logits of 16 tokens, less than the
margin and the short sequence that the pool reserves for a load. No pass is longer than the shortest step of a prefill.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache
from mlx_lm.sample_utils import greedy_sampler

from mlxd.engine.base import Decoding
from mlxd.engine.batch_decoder import make_decoder
from mlxd.engine.decoder import Entry
from mlxd.engine.fault import in_words, is_out_of_memory
from mlxd.engine.kv import CacheMaker, detach, leaves
from mlxd.protocol.errors import LoadFailed

_TEXTS = (
    "The water of the lake was cold, and nobody wanted to swim before the sun had come up over the hills.",
    "In 1969 two people walked on the moon; they left their footprints, a flag and a mirror behind.",
)
# The prompts are the first tokens of one text, each followed by one token that is decoded. Together they are as long as
# the shortest step of a prefill.
_SHORT_TOKENS = 3
_LONG_TOKENS = 8
_ROUNDING_FACTOR = 4
_LEAST_TOLERANCE = 0.1
_MOST_TOLERANCE = 0.3
_STATE_TOLERANCE = 0.2
# Best first.
_ORDER = (Decoding.BATCHED, Decoding.SINGLE_PREFILL, Decoding.ONE_BY_ONE)

_AGREES = "two prompts of unequal length give the same logits in a batch as alone"


@dataclass(frozen=True, slots=True)
class Finding:
    """How a model is decoded, and why."""

    decoding: Decoding
    reason: str


class DecodingCheck:
    """One check, a pass at a time."""

    def __init__(self, model: Any, caches: CacheMaker, texts: Iterable[Sequence[int]]) -> None:
        self._model = model
        self._caches = caches
        self._run = self._passes(texts)

    def advance(self) -> Finding | None:
        """Send a few tokens through the model once; return what was found when that is clear.

        Raises:
            LoadFailed: the logits are no numbers.
            Exception: whatever the model raises when it is alone.
        """
        try:
            next(self._run)
        except StopIteration as end:
            found: Finding = end.value
            return found
        return None

    def close(self) -> None:
        """Let go of the model; a traceback that holds this object holds no weights."""
        self.__dict__.clear()

    def _passes(self, texts: Iterable[Sequence[int]]) -> Generator[None, None, Finding]:
        found: list[Finding] = []
        for text in texts:
            if found:
                yield
            found.append((yield from self._examine(list(text))))
            if found[-1].decoding is Decoding.BATCHED or not self._caches.can_merge:
                return found[-1]
        return min(found, key=lambda one: _ORDER.index(one.decoding))

    def _examine(self, text: list[int]) -> Generator[None, None, Finding]:
        known = self._caches.make()
        first = self._alone(text[:_SHORT_TOKENS], known)
        yield
        cache = copy.deepcopy(known)  # the arrays are shared
        expected = mx.concatenate([first, self._alone(text[_SHORT_TOKENS:], cache)])
        if not self._caches.can_merge:
            return Finding(Decoding.ONE_BY_ONE, "mlx-lm has no batch for the caches of this model")
        detach(known)
        detach(cache)
        yield
        mixed = yield from self._together(text, expected, known)
        if isinstance(mixed, Finding):
            return mixed
        yield
        deeper = self._decoded_together(text, expected, known, cache)
        if deeper is None:
            return Finding(Decoding.SINGLE_PREFILL, f"prompts disturb each other when processed together: {mixed}")
        return Finding(Decoding.ONE_BY_ONE, f"answers disturb each other when decoded together: {deeper}")

    def _alone(self, tokens: list[int], cache: list[Any]) -> mx.array:
        """Return the logits [tokens, vocabulary] of one row, float32."""
        logits: mx.array = self._model(mx.array([tokens]), cache=cache)[0].astype(mx.float32)
        mx.eval(logits, [part.state for part in cache])
        _check_numbers(logits)
        return logits

    def _together(self, text: list[int], expected: mx.array, known: list[Any]) -> Generator[None, None, Finding | str]:
        """Process both prompts together and decode a token of each; return why they may not be processed together.

        What happens to logits alone happens while decoding: no token of a prompt sees padding, so its KV is right.
        """
        recorder = _Recorder(self._model)
        decoder = make_decoder(recorder, self._caches, (), Decoding.BATCHED)
        try:
            try:
                short = decoder.insert(_entry(text[: _SHORT_TOKENS + 1]))
                decoder.insert(_entry(text))
                decoder.step(max)
                prompts = recorder.take()
                states = _state_deviation(decoder.extract(short).cache, known)
            except Exception as error:  # noqa: BLE001 the model's own
                return _refusal(error)
            if states > _STATE_TOLERANCE:
                return f"the state of the shorter one changes by {states:.0%}"
            yield
            rounding = max(
                _deviation(prompts[0, :_SHORT_TOKENS], expected[:_SHORT_TOKENS]),
                _deviation(prompts[1], expected[:_LONG_TOKENS]),
            )
            try:
                decoder.step(max)
                decoded = recorder.take()
            except Exception as error:  # noqa: BLE001 the model's own
                problem: str | None = _refusal(error)
            else:
                problem = _disagreement(decoded, expected[[_SHORT_TOKENS, _LONG_TOKENS]], rounding)
        finally:
            decoder.close()
        if problem is None:
            return Finding(Decoding.BATCHED, _AGREES)
        return Finding(Decoding.ONE_BY_ONE, f"answers disturb each other when decoded together: {problem}")

    def _decoded_together(self, text: list[int], expected: mx.array, known: list[Any], longer: list[Any]) -> str | None:
        """Decode a token of the shorter prompt, processed alone, beside the whole text and a prompt of one token."""
        recorder = _Recorder(self._model)
        decoder = make_decoder(recorder, self._caches, (), Decoding.SINGLE_PREFILL)
        try:
            decoder.insert(_entry(text[: _SHORT_TOKENS + 1], known))
            decoder.insert(_entry(text[:1]))
            decoder.insert(_entry([*text, text[0]], longer))
            decoder.step(max)
            decoded = recorder.take()[:2]
        except Exception as error:  # noqa: BLE001 the model's own
            return _refusal(error)
        finally:
            decoder.close()
        return _disagreement(decoded, expected[[_SHORT_TOKENS, 0]], 0.0)


class _Recorder:
    """A model that keeps the logits of its last pass."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._logits: mx.array | None = None

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        self._logits = self._model(tokens, cache=cache)
        return self._logits

    def take(self) -> mx.array:
        """Return the logits [rows, tokens, vocabulary] of the last pass, evaluated."""
        logits, self._logits = self._logits, None
        if logits is None:
            raise RuntimeError("the decoder made no pass")
        mx.eval(logits)
        return logits


def as_texts(tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """Return the texts of a check as tokens of a model, without 0: mlx-lm pads with it, which must show."""
    return [
        [
            token % vocab_size or 1
            for token in itertools.islice(itertools.cycle(tokenizer.encode(text)), _LONG_TOKENS + 1)
        ]
        for text in _TEXTS
    ]


def _entry(tokens: list[int], cache: list[Any] | None = None) -> Entry:
    known = 0 if cache is None else len(tokens) - 1
    return Entry(tokens, known, cache, kv_tokens=_LONG_TOKENS + 2, max_tokens=1, sampler=greedy_sampler)


def _refusal(error: Exception) -> str:
    if is_out_of_memory(error):
        raise error
    return f"a batch fails ({in_words(error)})"


def _disagreement(decoded: mx.array, expected: mx.array, rounding: float) -> str | None:
    """Compare the logits of both rows' next tokens with those that they have alone."""
    tolerance = min(_MOST_TOLERANCE, max(_LEAST_TOLERANCE, _ROUNDING_FACTOR * rounding))
    deviation = _deviation(decoded[:, -1], expected)
    if deviation <= tolerance:
        return None
    if math.isinf(deviation):
        return "other tokens become impossible"
    return f"the next token's logits change by {deviation:.0%} of their spread"


def _deviation(logits: mx.array, expected: mx.array) -> float:
    """Return how far logits are off at most, as a share of the spread of those expected; [places, vocabulary] each.

    What is the same for all tokens changes no answer. -inf, of tokens that are never to be chosen, must be the same.
    """
    logits = logits.astype(mx.float32)
    possible = mx.isfinite(expected)
    if not mx.array_equal(possible, mx.isfinite(logits)).item():
        return math.inf
    count = mx.sum(possible, axis=-1, keepdims=True)

    def centered(values: mx.array) -> mx.array:
        values = mx.where(possible, values, 0.0)
        return mx.where(possible, values - mx.sum(values, axis=-1, keepdims=True) / count, 0.0)

    def spread(values: mx.array) -> mx.array:
        return mx.sqrt(mx.sum(values * values, axis=-1) / count[..., 0])

    wanted = centered(expected)
    difference = spread(centered(logits) - wanted)
    least = 1e-6 * mx.max(mx.where(possible, mx.abs(expected), 0.0)) + 1e-30  # logits that are all alike
    return _number(mx.max(difference / mx.maximum(spread(wanted), least)))


def _state_deviation(cache: list[Any], expected: list[Any]) -> float:
    """Return how far the states of one row are off, in the layer where that is least; of several states, the worst."""
    deviations: defaultdict[int, list[float]] = defaultdict(list)
    for part, wanted in zip(leaves(cache), leaves(expected), strict=True):
        if isinstance(wanted, ArraysCache):
            for number, (state, wanted_state) in enumerate(zip(part.cache, wanted.cache, strict=True)):
                if wanted_state is not None:
                    deviations[number].append(_share(state, wanted_state))
    return max((min(shares) for shares in deviations.values()), default=0.0)


def _share(state: mx.array | None, expected: mx.array) -> float:
    if state is None or state.shape != expected.shape:
        return math.inf
    difference = state.astype(mx.float32) - expected.astype(mx.float32)
    size = mx.sqrt(mx.mean(mx.square(expected.astype(mx.float32))))
    return _number(mx.sqrt(mx.mean(mx.square(difference))) / mx.maximum(size, 1e-30))


def _number(array: mx.array) -> float:
    value: Any = array.item()
    return float(value)


def _check_numbers(logits: mx.array) -> None:
    """Refuse logits of which no answer can be made; -inf of some tokens is how a model says never.

    Raises:
        LoadFailed: some are NaN or infinite.
    """
    never = logits == -mx.inf
    is_bad = mx.any(~(mx.isfinite(logits) | never)) | mx.any(mx.all(never, axis=-1))
    if is_bad.item():
        raise LoadFailed(
            "the weights were read, but the first logits are NaN or infinite, so every answer would be nonsense",
            hint="a file is damaged, or config.json does not belong to the weights (rope_theta, quantization);"
            " download the model again",
        )
