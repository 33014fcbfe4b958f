"""What is refused before anything is rendered or reaches the device: sampling params and tokens. No mlx."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlxd.engine.base import SamplingParams
from mlxd.protocol.errors import InvalidRequest


def foreign_token(tokens: Sequence[int], vocab_size: int) -> int | None:
    """Return a token that the model does not have; None when all are its own."""
    # Of every prompt: a tokenizer may know more tokens than its model, and MLX reads past the end of the embedding.
    if not tokens or 0 <= min(tokens) <= max(tokens) < vocab_size:
        return None
    return min(tokens) if min(tokens) < 0 else max(tokens)


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Refuse what a sampler would fail on: an exception inside a batch costs other rows their tokens.

    Raises:
        InvalidRequest: names the parameter and its bounds.
    """
    bounds = {
        "temperature": (0.0, math.inf),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "top_k": (0, math.inf),
        "xtc_probability": (0.0, 1.0),
        "xtc_threshold": (0.0, 0.5),
        "presence_penalty": (-math.inf, math.inf),
        "frequency_penalty": (-math.inf, math.inf),
    }
    for name, (least, most) in bounds.items():
        value = getattr(params, name)
        if not (math.isfinite(value) and least <= value <= most):
            at_most = f" and at most {most:g}" if math.isfinite(most) else ""
            raise InvalidRequest(f"{name} is {value}; it is a number of at least {least:g}{at_most}", param=name)
    if not (math.isfinite(params.repetition_penalty) and params.repetition_penalty > 0):
        raise InvalidRequest(
            f"repetition_penalty is {params.repetition_penalty}; it is a number above 0", param="repetition_penalty"
        )
    for token, bias in params.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; the tokens are 0..{vocab_size - 1}", param="logit_bias"
            )
        if not math.isfinite(bias):
            raise InvalidRequest(f"logit_bias gives token {token} the bias {bias}", param="logit_bias")
