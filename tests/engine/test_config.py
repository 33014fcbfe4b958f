"""What is taken for a number of a config, and which numbers no model can have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlxd.engine.config import Context, as_size, context_of, first_int, parts_problem


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (2**31 - 1, 2**31 - 1),
        *zip((0, -1, 2**31, 10**40, True, 1.0, math.nan, math.inf, "1", None, [1], {}), [None] * 12, strict=True),
    ],
)
def test_a_size(value: object, expected: int | None) -> None:
    """A size is a whole number from 1 to 2^31 - 1, and nothing else is."""
    assert as_size(value) == expected


def test_the_first_key_with_a_size_counts() -> None:
    """A value that is no size is as good as absent, and `text_config` is looked into."""
    assert first_int({"a": -5, "text_config": {"b": 7}}, ("a", "b")) == 7
    assert first_int({"text_config": ["a"]}, ("a",)) is None


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Context(None, None)),
        ({"max_position_embeddings": -80}, Context(None, None)),
        ({"max_seq_len": 2048}, Context(2048, 2048)),
        ({"text_config": {"max_position_embeddings": 4096}}, Context(4096, 4096)),
        ({"max_position_embeddings": 40960, "rope_scaling": YARN}, Context(40960, 131072)),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, Context(131072, 131072)),
        ({"max_position_embeddings": 262144, "rope_scaling": YARN}, Context(262144, 262144)),
        ({"max_position_embeddings": 40960, "text_config": {"rope_parameters": YARN}}, Context(40960, 131072)),
        ({"max_position_embeddings": 40960, "rope_scaling": {"factor": 4.0}}, Context(40960, 40960)),
        *(
            ({"max_position_embeddings": 40960, "rope_scaling": YARN | {"factor": factor}}, Context(40960, 40960))
            for factor in ("4", None, True, math.nan, math.inf, -4, 10**40, [4])
        ),
        ({"max_position_embeddings": 40960, "rope_scaling": [YARN]}, Context(40960, 40960)),
    ],
)
def test_context(config: dict[str, Any], expected: Context) -> None:
    """What a config states is the model's own; a factor on stated positions says how far a setting may go."""
    assert context_of(config) == expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 9}, "its config has 9 for num_hidden_layers, and the weights have only 8 tensors"),
        ({"text_config": {"n_layer": 9}}, "9 for n_layer"),
        ({"num_experts": 16_385}, "its config has 16385 for num_experts; the maximum is 16384"),
        ({"a": {"b": {"n_routed_experts": 10**30}}}, "for n_routed_experts; the maximum is 16384"),
        ({"num_loops": math.inf}, "inf for num_loops"),
    ],
)
def test_parts_that_no_model_has(config: dict[str, Any], words: str) -> None:
    """mlx-lm would make each of them before it looks at the weights."""
    problem = parts_problem(config, 8)
    assert problem is not None
    assert words in problem


def test_parts_of_models() -> None:
    """Sizes and positions are no parts, and what is no number is left to mlx-lm, which refuses it."""
    config = {"num_hidden_layers": 8, "vocab_size": 10**6, "n_positions": 10**6, "rope_theta": 1e11, "n_layer": "x"}
    assert parts_problem(config, 8) is None
