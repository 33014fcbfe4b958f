"""A model that counts the prompt tokens that go through it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


class CountingModel:
    """Counts the tokens of steps of more than one, padding included."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.prefilled_tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, tokens: mx.array, cache: list[Any]) -> Any:
        if tokens.shape[1] > 1:
            self.prefilled_tokens += tokens.size
        return self._model(tokens, cache=cache)
