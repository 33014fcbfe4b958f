"""The headers of safetensors files: names, types and sizes of tensors, without reading their data.

A file is eight bytes of little-endian header length, a JSON header, and the data
(https://github.com/huggingface/safetensors#format). MLX allocates what a header says and cannot catch an allocation
that fails: every tensor must be as long as its shape, and lie within the file. Must not import mlx: the catalog reads
headers on the event loop's worker threads, while the device thread owns MLX.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.engine.model_file import BadFile, open_regular, shown_text

# Two hundred thousand tensors; the format allows 100 MB, which takes a gigabyte to parse.
MAX_HEADER_BYTES = 32 << 20
# The types that MLX reads; a test compares them.
ITEMSIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "C64"), 8),
}

_LENGTH = struct.Struct("<Q")


class BadSafetensors(BadFile):
    """The file is no safetensors file, is cut short, or holds what MLX cannot read."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as the header describes it."""

    name: str
    dtype: str  # "F32", "BF16", "U32" ...
    shape: tuple[int, ...]
    n_bytes: int
    offset: int  # of its data in the file

    @property
    def size(self) -> int:
        """Count of elements."""
        return math.prod(self.shape)


def read_tensors(path: Path) -> list[Tensor]:
    """Return the tensors of the file at *path*, in the order of its header.

    Raises:
        BadSafetensors: the header does not parse, or data that it names is missing.
        BadFile: it is no regular file.
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        prefix = file.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            raise BadSafetensors(f"{path.name} is cut short")
        (header_bytes,) = _LENGTH.unpack(prefix)
        if header_bytes > MAX_HEADER_BYTES:
            raise BadSafetensors(f"{path.name} is not a safetensors file")
        raw = file.read(header_bytes)
        file_bytes = os.fstat(file.fileno()).st_size
    if len(raw) < header_bytes:
        raise BadSafetensors(f"{path.name} is cut short")
    tensors, data_bytes = _parse(raw, path.name)
    expected_bytes = _LENGTH.size + header_bytes + data_bytes
    if file_bytes < expected_bytes:
        raise BadSafetensors(f"{path.name} is cut short: {file_bytes} of {expected_bytes} bytes")
    return tensors


def _parse(raw: bytes, file_name: str) -> tuple[list[Tensor], int]:
    """Return the tensors, and the bytes of data that they need."""
    try:
        header: dict[str, Any] = json.loads(raw)
        described = [(name, fields) for name, fields in header.items() if name != "__metadata__"]
        tensors = [_tensor(name, fields, file_name, _LENGTH.size + len(raw)) for name, fields in described]
        return tensors, max((fields["data_offsets"][1] for _, fields in described), default=0)
    except BadSafetensors:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadSafetensors(f"{file_name} has a header that cannot be read") from error


def _tensor(name: str, fields: Any, file_name: str, data_offset: int) -> Tensor:
    dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise BadSafetensors(f"{file_name}: the tensor {shown_text(name)} has a shape or a place that is none")
    if dtype not in ITEMSIZES:
        raise BadSafetensors(
            f"{file_name}: the tensor {shown_text(name)} is of type {shown_text(str(dtype))}, which MLX cannot read"
        )
    n_bytes = ITEMSIZES[dtype] * math.prod(shape)
    if n_bytes != end - begin:
        raise BadSafetensors(
            f"{file_name}: the tensor {shown_text(name)} has {end - begin} bytes, and its shape needs {n_bytes}"
        )
    return Tensor(name, dtype, shape, n_bytes, data_offset + begin)
