"""All types of models in all precisions, and with the rounding of a GPU: `make test-architectures`, two minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.normalization import LayerNorm, RMSNorm

from mlxd.engine.base import Decoding
from tests.engine.test_decoding_check import EXPECTED, check
from tests.support.every_architecture import PRECISIONS, every_type, make_any

_ROUNDING = 2.0**-8  # bfloat16's


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model_type", every_type())
def test_every_type_in_every_precision(model_type: str, precision: str) -> None:
    """A type that answers alike in a batch is decoded in batches, and one that does not is found out."""
    found, passes = check(make_any(model_type, precision))
    assert found.decoding is EXPECTED.get(model_type, Decoding.BATCHED), found.reason
    assert passes == 4 or found.decoding is not Decoding.BATCHED


@pytest.mark.parametrize("start", range(0, 80, 20))
# A wrong position shows little where random attention looks everywhere: not beyond rounding for afm7.
@pytest.mark.parametrize("model_type", [name for name in every_type() if name != "afm7"])
def test_rounding_changes_nothing(model_type: str, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same is found where all layers round a batch of two to bfloat16 in another way, as a GPU may."""

    def rounded(call: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def run(layer: Any, x: mx.array, *arguments: Any, **options: Any) -> mx.array:
            out = call(layer, x, *arguments, **options)
            return out * (1 + _ROUNDING * mx.random.normal(out.shape)) if out.shape[0] == 2 else out

        return run

    model = make_any(model_type)
    for layer in (Linear, RMSNorm, LayerNorm):
        monkeypatch.setattr(layer, "__call__", rounded(layer.__call__))
    texts = [[(17 + 29 * place + 31 * text + start) % 100 for place in range(9)] for text in range(2)]
    found, _ = check(model, texts)
    assert found.decoding is EXPECTED.get(model_type, Decoding.BATCHED), found.reason
