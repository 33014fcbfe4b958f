"""What is refused before anything is rendered or reaches the device: tokens that the model does not have. No mlx."""

from __future__ import annotations

from collections.abc import Sequence

from mlxd.engine.base import SamplingParams
from mlxd.protocol.errors import InvalidRequest


def foreign_token(tokens: Sequence[int], vocab_size: int) -> int | None:
    """Return a token that the model does not have; None when all are its own."""
    # Of every prompt: a tokenizer may know more tokens than its model, and MLX reads past the end of the embedding.
    if not tokens or 0 <= min(tokens) <= max(tokens) < vocab_size:
        return None
    return min(tokens) if min(tokens) < 0 else max(tokens)


def check_bias(params: SamplingParams, vocab_size: int) -> None:
    """Refuse a bias of a token that the model does not have: an exception inside a batch costs other rows their tokens.

    Raises:
        InvalidRequest: names the token, and which there are.
    """
    for token, _ in params.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; the tokens are 0..{vocab_size - 1}", param="logit_bias"
            )
