"""A bound on thinking: when it is spent, the model is made to end its thinking and to answer. On the device thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx


class ThinkingBudget:
    """A logits processor for one row's stay in a batch; never raises for what a model does.

    Tokens count from the opening tag on. When the budget is spent the closing tag is forced, token by token.
    """

    def __init__(self, tokenizer: Any, budget_tokens: int, generated: Sequence[int], *, is_thinking: bool) -> None:
        """Take mlx-lm's `TokenizerWrapper` of a model that thinks.

        Args:
            tokenizer: knows the tags.
            budget_tokens: most tokens between them.
            generated: tokens of the answer that were made in stays before.
            is_thinking: whether the prompt ends inside the thinking.
        """
        self._start: tuple[int, ...] = tokenizer.think_start_tokens
        self._end: tuple[int, ...] = tokenizer.think_end_tokens
        self._budget_tokens = budget_tokens
        self._spent = 0 if is_thinking else -1  # -1: it does not think
        self._seen: list[int] = []
        self._forced = 0  # tokens of the closing tag that were forced
        self._is_first = True
        for token in generated:
            self._take(token)

    def __call__(self, context: mx.array, logits: mx.array) -> mx.array:
        """Return *logits* [1, vocabulary], or nothing but the next token of the closing tag."""
        if self._is_first:
            self._is_first = False
        else:
            self._take(cast("int", context[-1].item()))
        if self._spent < self._budget_tokens:
            return logits
        tokens = mx.arange(logits.shape[-1])
        return mx.where(tokens == self._end[self._forced], logits, -mx.inf)

    def _take(self, token: int) -> None:
        if self._spent >= self._budget_tokens and token == self._end[self._forced]:
            self._forced += 1
            if self._forced == len(self._end):
                self._close()
            return
        self._seen = [*self._seen, token][-max(len(self._start), len(self._end)) :]
        if self._spent < 0:
            if tuple(self._seen[-len(self._start) :]) == self._start:
                self._spent = 0
        elif tuple(self._seen[-len(self._end) :]) == self._end:
            self._close()
        else:
            self._spent += 1

    def _close(self) -> None:
        self._spent, self._forced, self._seen = -1, 0, []
