"""What is typed after `model pull`."""

from __future__ import annotations

import pytest

from mlxd.download.__main__ import check_target
from mlxd.protocol.errors import InvalidRequest


@pytest.mark.parametrize("target", ["mlx-community/Qwen3-4B-4bit", "gpt2", "a/b.c_d-1"])
def test_names(target: str) -> None:
    """Names of the hub are let through, with an owner and without."""
    check_target(target)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("https://huggingface.co/mlx-community/x/tree/main", "mlxctl model pull mlx-community/x"),
        ("https://huggingface.co/", "mlxctl model pull ORG/NAME"),
        ("./models/x.Q8_0.gguf", "mlxctl model import ./models/x.Q8_0.gguf"),
        ("/models/x", "mlxctl config get catalog.paths"),
        ("~/models/x", "mlxctl config get catalog.paths"),
        ("startr", "mlxctl model pull starter"),
        ("a/b/c", "mlxctl model pull starter, for a small one"),
        ("", "mlxctl model pull starter, for a small one"),
        ("a b", "mlxctl model pull starter, for a small one"),
    ],
)
def test_what_is_no_name(target: str, hint: str) -> None:
    """Addresses, files, folders and slips are told apart, each with the command that was probably meant."""
    with pytest.raises(InvalidRequest) as caught:
        check_target(target)
    assert str(caught.value.hint).startswith(hint)
