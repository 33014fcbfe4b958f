"""The memory cost of one sequence, as plain numbers: the pool, the catalog and the engine count alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

# mlx-lm's caches grow in steps of this many tokens (`KVCache.step`).
KV_STEP_TOKENS = 256
# Prompts that are processed side by side, and the most tokens of each in one step where layers have a sliding window:
# these keep the whole step beside the window until the next.
PREFILL_ROWS = 8
WINDOW_PREFILL_TOKENS = 1024
# More than any machine has, however absurd the numbers of a config; a thousand rows of it are still 64 bits.
_MOST_BYTES = 2**50
# A prompt with more than this to process is processed alone: it fills the device by itself.
LONG_PROMPT_TOKENS = 2048
# Rows share a batch, and are padded to its longest, up to this length; beyond it with rows of up to four times as much.
_SHORT_TOKENS = 8192
_CLASS_FACTOR = 4


def length_class(tokens: int) -> int:
    """Return which batch a row that may hold *tokens* belongs to: 0 up to 8k, 1 up to 32k, 2 up to 128k, and so on."""
    number, most_tokens = 0, _SHORT_TOKENS
    while tokens > most_tokens:
        number, most_tokens = number + 1, most_tokens * _CLASS_FACTOR
    return number


@dataclass(frozen=True, slots=True)
class KvShape:
    """What the KV of one sequence costs.

    `groups` are (bytes per token, most tokens kept or None) of the layers that share a cache kind: full attention has
    no cap, a sliding window has one. `fixed_bytes` is what a sequence holds whatever its length (state-space layers).
    Source: 2 · kv_heads · head_dim · itemsize per attention layer.

    An encoder keeps nothing of a text; its shape is the workspace of one text, `square_bytes` of it per pair of tokens.
    """

    groups: tuple[tuple[int, int | None], ...]
    fixed_bytes: int = 0
    square_bytes: int = 0

    def bytes_for(self, tokens: int) -> int:
        """Return the most that one sequence of *tokens* holds when its prompt is done.

        A cache that is full grows by one step of 256 tokens from whatever length it has, which a batch leaves
        anywhere; so what it holds is not rounded up to a step, but up to one step more.
        """
        kept = tokens + KV_STEP_TOKENS - 1
        grown = sum(per_token * (kept if cap is None else min(kept, cap)) for per_token, cap in self.groups)
        return min(grown + self.fixed_bytes + self.square_bytes * tokens**2, _MOST_BYTES)

    @property
    def has_window(self) -> bool:
        """Whether some layers keep no more than the last tokens."""
        return any(cap is not None for _, cap in self.groups)

    def checkpoint_bytes(self, tokens: int) -> int:
        """Return what a checkpoint after *tokens* holds: of layers with a window or a state, which cannot be cut."""
        windows = sum(per_token * min(tokens, cap) for per_token, cap in self.groups if cap is not None)
        return min(windows + self.fixed_bytes, _MOST_BYTES)

    def prefill_bytes(self, tokens: int) -> int:
        """Return what one sequence of *tokens* holds beyond that while its prompt is processed.

        A layer with a window keeps the window and all of the step that came last (mlx-lm's `RotatingKVCache`).
        """
        kept = sum(
            per_token * max(0, min(tokens - cap, WINDOW_PREFILL_TOKENS))
            for per_token, cap in self.groups
            if cap is not None
        )
        return min(kept, _MOST_BYTES)

    def batch_bytes(self, grants: Iterable[int], *, left: Iterable[int] = (), is_padded: bool = True) -> int:
        """Return the most that rows with these granted tokens hold.

        Every row is padded to the longest of its `length_class`; to none where rows are decoded one by one.

        Args:
            grants: what each row may hold.
            left: what rows could hold before they were granted more: they pad the rows that stay until they have moved.
            is_padded: whether the rows share batches.
        """
        if not is_padded:
            return sum(self.bytes_for(tokens) + self.prefill_bytes(tokens) for tokens in grants)
        classes: defaultdict[int, list[int]] = defaultdict(list)
        for tokens in grants:
            classes[length_class(tokens)].append(tokens)
        longest = {number: max(rows) for number, rows in classes.items()}
        for tokens in left:
            number = length_class(tokens)
            if number in longest:
                longest[number] = max(longest[number], tokens)
        return sum(
            len(rows) * self.bytes_for(longest[number])
            + min(len(rows), PREFILL_ROWS) * self.prefill_bytes(longest[number])
            for number, rows in classes.items()
        )
