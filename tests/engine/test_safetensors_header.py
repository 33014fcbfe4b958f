"""Headers against what MLX would allocate for them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxd.engine.safetensors_header import ITEMSIZES, BadSafetensors, read_tensors

_KNOWN = (
    *("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64", "C64", "C128"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "F6_E2M3", "F6_E3M2"),
)


def write(folder: Path, header: Any, data_bytes: int = 64) -> Path:
    """Write a file with this header and some zeros."""
    path = folder / "model.safetensors"
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data_bytes))
    return path


def tensor(**changes: Any) -> dict[str, Any]:
    """Return a header of one tensor of two numbers, but for *changes*."""
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def safetensors_bytes(path: Path) -> int:
    """Return what MLX makes of the tensor `a`."""
    loaded: Any = mx.load(str(path))
    return int(loaded["a"].nbytes)


@pytest.mark.parametrize("dtype", _KNOWN)
def test_the_types_are_those_of_mlx(tmp_path: Path, dtype: str) -> None:
    """A type is known here with its size exactly when MLX reads it."""
    n_bytes = ITEMSIZES.get(dtype, 8)
    path = write(tmp_path, tensor(dtype=dtype, shape=[1], data_offsets=[0, n_bytes]))
    try:
        is_read = safetensors_bytes(path) == n_bytes
    except RuntimeError:
        is_read = False
    assert is_read == (dtype in ITEMSIZES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": [100_000, 100_000]}, "the tensor a has 8 bytes, and its shape needs 40000000000"),
        ({"shape": [1]}, "the tensor a has 8 bytes, and its shape needs 4"),
        ({"shape": [2**16] * 4, "data_offsets": [0, 0]}, "the tensor a has 0 bytes, and its shape needs"),
        ({"shape": [-1], "data_offsets": [4, 0]}, "a shape or a place that is none"),
        ({"shape": [2.0]}, "a shape or a place that is none"),
        ({"shape": [True, 2]}, "a shape or a place that is none"),
        ({"data_offsets": [-8, 0]}, "a shape or a place that is none"),
        ({"data_offsets": [0, 8, 16]}, "has a header that cannot be read"),
        ({"shape": 2}, "has a header that cannot be read"),
        ({"dtype": ["F32"]}, "has a header that cannot be read"),
        ({"dtype": "F64"}, "the tensor a is of type F64, which MLX cannot read"),
        ({"dtype": "\n" * 1000}, r"is of type \?\?\?"),
        ({"data_offsets": [10**9, 10**9 + 8]}, "is cut short: .* of 100000"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Shape, type and place of a tensor must agree with each other and with the file."""
    with pytest.raises(BadSafetensors, match=words):
        read_tensors(write(tmp_path, tensor(**changes)))


@pytest.mark.parametrize("header", [[], 5, None, {"a": 5}, {"a": []}, {"a": {}}])
def test_a_header_of_another_kind(tmp_path: Path, header: Any) -> None:
    """Any JSON may stand there."""
    with pytest.raises(BadSafetensors, match="has a header that cannot be read"):
        read_tensors(write(tmp_path, header))


def test_a_header_is_bounded(tmp_path: Path) -> None:
    """The length of a header is looked at before as much is read."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**25 + 1) + b"{}")
    with pytest.raises(BadSafetensors, match="is not a safetensors file"):
        read_tensors(path)
    path.write_bytes(struct.pack("<Q", 2**25) + b"{}")
    with pytest.raises(BadSafetensors, match="is cut short"):
        read_tensors(path)


def test_an_empty_shape_is_one_number(tmp_path: Path) -> None:
    """Scalars and tensors without any number are good."""
    header = tensor(shape=[], data_offsets=[0, 4]) | {"b": {"dtype": "U8", "shape": [0], "data_offsets": [4, 4]}}
    assert [found.n_bytes for found in read_tensors(write(tmp_path, header))] == [4, 0]
