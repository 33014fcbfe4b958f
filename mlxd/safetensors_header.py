"""The headers of safetensors files: names, types and sizes of tensors, without reading their data.

A file is eight bytes of little-endian header length, a JSON header, and the data
(https://github.com/huggingface/safetensors#format). Must not import mlx: the catalog reads headers on the event loop's
worker threads, while the device thread owns MLX.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The format's own bound; a bigger number is a file of another kind.
MAX_HEADER_BYTES = 100_000_000

_LENGTH = struct.Struct("<Q")


class BadSafetensors(ValueError):
    """The file is no safetensors file, or it is cut short."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as the header describes it."""

    name: str
    dtype: str  # "F32", "BF16", "U32" ...
    shape: tuple[int, ...]
    n_bytes: int

    @property
    def size(self) -> int:
        """Count of elements."""
        return math.prod(self.shape)


def read_tensors(path: Path) -> list[Tensor]:
    """Return the tensors of the file at *path*, in the order of its header.

    Raises:
        BadSafetensors: the header does not parse, or data that it names is missing.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
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
    tensors = []
    data_bytes = 0
    try:
        header: dict[str, Any] = json.loads(raw)
        for name, fields in header.items():
            if name == "__metadata__":
                continue
            begin, end = (int(offset) for offset in fields["data_offsets"])
            shape = tuple(int(size) for size in fields["shape"])
            tensors.append(Tensor(name, str(fields["dtype"]), shape, end - begin))
            data_bytes = max(data_bytes, end)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadSafetensors(f"{file_name} has a header that cannot be read") from error
    return tensors, data_bytes
