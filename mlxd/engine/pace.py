"""How many prompt tokens the next step takes: all it may when nobody waits, few when others are decoding.

The one place where the device thread looks at a measured time; it changes when work is done, never what comes out.
"""

from __future__ import annotations

from mlxd.engine.base import SchedulingParams

# Shorter steps than this cost more in overhead than they give back to the others (measured on a CPU).
_LEAST_TOKENS = 16
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
