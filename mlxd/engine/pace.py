"""Choose how many prompt tokens the next step takes, and how many steps a model does in a round.

What the device thread decides by measured times, it decides here: that changes when work is done, never what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager

from mlxd.engine.base import SchedulingParams

# Shorter steps than this cost more in overhead than they give back to the others (measured on a CPU).
_LEAST_TOKENS = 16
# Steps that a model may do in one round. The pause commands and other models wait for is longer by as much.
_MOST_STEPS = 16
# Down to here a shorter step is no slower, and prompts of unequal length in one batch are padded to the step.
_CHEAP_TOKENS = 128


class PrefillPace:
    """The prefill step of one model."""

    def __init__(self, params: SchedulingParams, device_tokens: int) -> None:
        """Begin carefully, the first steps find the pace; *device_tokens* is the step that suits the device."""
        self._device_tokens = device_tokens
        self._decode_s = 0.0
        self._shared_tokens = _CHEAP_TOKENS
        self.change(params)

    def change(self, params: SchedulingParams) -> None:
        """Use other parameters from the next step on."""
        most = params.prefill_step_tokens
        self._most_tokens = self._device_tokens if most is None else most
        self._target_s = params.target_gap_ms / 1000
        self._shared_tokens = min(self._shared_tokens, self._most_tokens)

    @contextmanager
    def step(
        self, *, is_prefilling: bool, decoding: bool, others: bool, most: int | None
    ) -> Iterator[Callable[[list[int]], int]]:
        """Time a step of a decoder, and give out what tells it how many tokens of each prompt to process.

        Args:
            is_prefilling: whether there is a prompt in it.
            decoding: whether a row of this model waits for its token.
            others: whether one of another model does.
            most: tokens of a prompt in one step, whatever the pace.
        """
        whole_chunks: list[int] = []

        def chunk_tokens(remaining: list[int]) -> int:
            tokens = self.step_tokens(remaining, others_decode=decoding or others)
            tokens = tokens if most is None else min(tokens, most)
            if max(remaining) >= tokens:  # a shorter one does not tell how long a step takes
                whole_chunks.append(tokens)
            return tokens

        started_s = time.perf_counter()
        yield chunk_tokens
        elapsed_s = time.perf_counter() - started_s
        if not is_prefilling:
            self.record_decode(elapsed_s)
        elif whole_chunks:
            self.record_prefill(max(whole_chunks), elapsed_s, decoding=decoding)

    def step_tokens(self, remaining: list[int], *, others_decode: bool) -> int:
        """Return the most tokens of each prompt in the next step; *remaining* has what each of them still needs."""
        tokens = self._shared_tokens if others_decode else self._most_tokens
        shortest, longest = min(remaining), max(remaining)
        if shortest < longest:
            tokens = min(tokens, max(shortest, _CHEAP_TOKENS))
        return tokens

    def record_decode(self, seconds: float) -> None:
        """Note how long a step took that had no prefill in it."""
        self._decode_s = seconds

    def record_prefill(self, tokens: int, seconds: float, *, decoding: bool) -> None:
        """Note how long a step took that processed *tokens* of each prompt; *decoding*: with rows of this model."""
        prefill_s = max(seconds - (self._decode_s if decoding else 0.0), 1e-6)
        factor = min(2.0, max(0.5, self._target_s / prefill_s))
        self._shared_tokens = min(max(int(tokens * factor), _LEAST_TOKENS), self._most_tokens)


class StepTurns:
    """How many steps each busy model does in a round.

    A round takes the sum of its steps. With one step each, a model whose step takes 5 ms would make a token in 105 ms
    beside one whose step takes 100 ms. So those with shorter steps repeat them, all together for as long as the longest
    step takes: of two models, none loses more than half of its pace, but for the bound.
    """

    def __init__(self) -> None:
        self._last_s: dict[Hashable, float] = {}
        self._step_s: dict[Hashable, float] = {}  # the shorter of the last two: a hiccup is no long step

    def plan(self, busy: Iterable[Hashable]) -> dict[Hashable, int]:
        """Return the steps of each model in the next round, at least 1; one that was never measured does 1."""
        models = list(busy)
        longest_s = max((self._step_s.get(model, 0.0) for model in models), default=0.0)
        share_s = longest_s / max(1, len(models) - 1)
        return {model: self._steps(self._step_s.get(model, longest_s), share_s) for model in models}

    def record(self, model: Hashable, seconds: float) -> None:
        """Note how long a step of *model* took."""
        self._step_s[model] = min(seconds, self._last_s.get(model, seconds))
        self._last_s[model] = seconds

    def forget(self, model: Hashable) -> None:
        """Let go of a model."""
        self._step_s.pop(model, None)
        self._last_s.pop(model, None)

    def _steps(self, step_s: float, share_s: float) -> int:
        return 1 if step_s <= 0 else min(max(int(share_s / step_s), 1), _MOST_STEPS)
