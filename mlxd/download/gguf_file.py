"""The container of a GGUF file: its metadata and where its tensors lie. Every length is checked before it is used.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Must not import mlx, whose own reader maps the file and
trusts what stands in it: a damaged one would end the process without a word.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlxd.download.errors import CannotConvert

Metadata = Mapping[str, Any]

_MAGIC = b"GGUF"
_OLD_MAGICS = (b"lmgg", b"tjgg", b"fmgg", b"algg")  # ggml, ggjt, ggmf, ggla as they lie in the file
_VERSIONS = (2, 3)
# The largest known header, of a vocabulary of 256,000 tokens with merges, is a fifth of this.
_HEADER_BYTES = 64 << 20
_MAX_TENSORS = 65_536
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 65_535
# ggml_type → name. Those of TYPES can be read; the others are known in order to be refused by name.
_TYPE_NAMES = (
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32",
    "I64", "F64", "IQ1_M", "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8",
    "IQ4_NL_8_8", "MXFP4", "NVFP4",
)  # fmt: skip
# Name → weights in a block, bytes of a block.
TYPES = {"F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q8_0": (32, 34)}
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its name, its shape with the rows first, its type's name, and its place in the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file whose header is sound, and which is as long as its header says."""

    path: Path
    metadata: Metadata
    tensors: tuple[GgufTensor, ...]

    def read(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """Return the bytes of a tensor.

        Raises:
            CannotConvert: the file has become shorter.
            OSError: it could not be read.
        """
        data = np.fromfile(self.path, np.uint8, tensor.n_bytes, offset=tensor.offset)
        if len(data) != tensor.n_bytes:
            raise CannotConvert(f"{self.path.name} became shorter while it was read", hint="repeat the command")
        return data


def read_gguf(path: Path) -> GgufFile:
    """Read the header of *path*.

    Raises:
        CannotConvert: it is no GGUF file, damaged, cut off, a part of several, or of types that MLX has not.
        OSError: it could not be read.
    """
    with path.open("rb") as file:
        header = _Header(path, file)
    n_tensors, n_pairs = header.read_start()
    metadata = header.read_metadata(n_pairs)
    _refuse_part(path, metadata)
    raw = [header.read_tensor() for _ in range(n_tensors)]
    _refuse_types(path, [type_id for _, _, type_id, _ in raw])
    start = _aligned(header.position, _alignment(path, metadata))
    tensors = tuple(
        _place(path, name, shape, _TYPE_NAMES[type_id], start + offset) for name, shape, type_id, offset in raw
    )
    needed_bytes = max((tensor.offset + tensor.n_bytes for tensor in tensors), default=0)
    if needed_bytes > header.file_bytes:
        raise CannotConvert(
            f"{path.name} is cut off: it has {header.file_bytes} bytes, and its tensors end at {needed_bytes}",
            hint="fetch it again",
        )
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise CannotConvert(f"{path.name} is damaged: two of its tensors have one name", hint="fetch it again")
    return GgufFile(path, metadata, tensors)


class _Header:
    """A cursor over the beginning of the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._data = file.read(_HEADER_BYTES)
        self.file_bytes = max(len(self._data), path.stat().st_size)
        self.position = 0

    def read_start(self) -> tuple[int, int]:
        """Return the numbers of tensors and of metadata."""
        name = self._path.name
        magic = self._data[:4]
        if magic != _MAGIC:
            raise CannotConvert(f"{name} is not a GGUF file: {_describe_other(self._data)}", hint=_PULL)
        self.position = 4
        version = self._scalar("<I")
        if version & 0xFFFF == 0:
            raise CannotConvert(
                f"{name} is a big-endian GGUF file, for other machines", hint="fetch the little-endian one"
            )
        if version not in _VERSIONS:
            raise CannotConvert(
                f"{name} is a GGUF file of version {version}; 2 and 3 are known", hint="fetch a newer one"
            )
        n_tensors, n_pairs = self._scalar("<Q"), self._scalar("<Q")
        if n_tensors > _MAX_TENSORS:
            raise self._damaged(f"it is to have {n_tensors} tensors")
        return n_tensors, n_pairs

    def read_metadata(self, n_pairs: int) -> dict[str, Any]:
        """Return the metadata: numbers, texts, and arrays as a list of texts or a numpy array."""
        metadata: dict[str, Any] = {}
        for _ in range(n_pairs):  # each takes bytes, so that a wrong number ends at the end of the header
            key = self._text(_MAX_NAME_BYTES)
            metadata[key] = self._value(self._scalar("<I"), key)
        return metadata

    def read_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type and offset of the next tensor."""
        name = self._text(_MAX_NAME_BYTES)
        n_dimensions = self._scalar("<I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"{name} is to have {n_dimensions} dimensions")
        shape = tuple(self._scalar("<Q") for _ in range(n_dimensions))
        return name, shape[::-1], self._scalar("<I"), self._scalar("<Q")

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text(_HEADER_BYTES)
        if kind == _ARRAY:
            return self._array(self._scalar("<I"), self._scalar("<Q"), key)
        return self._numbers(kind, 1, key)[0].item()

    def _array(self, kind: int, length: int, key: str) -> Any:
        if kind == _STRING:
            self._require(8 * length)  # before a loop over a made-up length
            return [self._text(_HEADER_BYTES) for _ in range(length)]
        return self._numbers(kind, length, key)

    def _numbers(self, kind: int, length: int, key: str) -> NDArray[Any]:
        if kind not in _SCALARS:
            raise self._damaged(f"{key} is of the kind {kind}")
        dtype = np.dtype(_SCALARS[kind])
        self._require(dtype.itemsize * length)
        numbers = np.frombuffer(self._data, dtype, length, self.position)
        self.position += numbers.nbytes
        return numbers

    def _text(self, max_bytes: int) -> str:
        length = self._scalar("<Q")
        if length > max_bytes:
            raise self._damaged(f"a text in it is to have {length} bytes")
        self._require(length)
        raw = self._data[self.position : self.position + length]
        self.position += length
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self._damaged("a text in it is not UTF-8") from None

    def _scalar(self, code: str) -> int:
        size = struct.calcsize(code)
        self._require(size)
        (value,) = struct.unpack_from(code, self._data, self.position)
        self.position += size
        return int(value)

    def _require(self, n_bytes: int) -> None:
        if n_bytes <= len(self._data) - self.position:
            return
        if len(self._data) < self.file_bytes and n_bytes <= self.file_bytes:
            raise self._damaged(f"its metadata are over {_HEADER_BYTES >> 20} MiB")
        raise CannotConvert(f"{self._path.name} is cut off inside its header", hint="fetch it again")

    def _damaged(self, how: str) -> CannotConvert:
        return CannotConvert(f"{self._path.name} is damaged: {how}", hint="fetch it again")


_PULL = "mlxctl model pull ORG/NAME, for a model of the hub that is made for MLX"


def _describe_other(data: bytes) -> str:
    """Say what a file is that does not begin as it should."""
    if not data:
        return "it is empty"
    if data[:4] in _OLD_MAGICS:
        return "it is of the GGML family that came before, which has no metadata"
    if data.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, and the file itself is still to be fetched (git lfs pull)"
    if data.lstrip()[:1] == b"<":
        return "it is a web page, so a download went wrong"
    if data[:2] == b"PK":
        return "it is a zip archive"
    return f"it begins with {data[:4]!r}"


def _refuse_part(path: Path, metadata: Metadata) -> None:
    count = metadata.get("split.count", 1)
    named = _SPLIT_NAME.fullmatch(path.name)
    if not isinstance(count, int) or count <= 1:
        return
    number = metadata.get("split.no")
    part = number + 1 if isinstance(number, int) else "one"
    whole = f"{named[1]}.gguf" if named else "WHOLE.gguf"
    first = f"{named[1]}-00001-of-{named[3]}.gguf" if named else "FIRST.gguf"
    raise CannotConvert(
        f"{path.name} is part {part} of {count}, and only a whole file can be imported",
        hint=f"llama-gguf-split --merge {first} {whole}",
    )


def _refuse_types(path: Path, type_ids: list[int]) -> None:
    names = [_TYPE_NAMES[type_id] if type_id < len(_TYPE_NAMES) else f"type {type_id}" for type_id in type_ids]
    refused = {name: names.count(name) for name in sorted(set(names) - set(TYPES))}
    if not refused:
        return
    counted = ", ".join(f"{name} ({count} of {len(names)})" for name, count in refused.items())
    raise CannotConvert(
        f"{path.name} has tensors of types that MLX does not read: {counted}\nit reads {', '.join(TYPES)}",
        hint="the same model as Q8_0, Q4_0, Q4_1 or F16; or one made for MLX: mlxctl model pull ORG/NAME",
        data={"types": refused},
    )


def _alignment(path: Path, metadata: Metadata) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise CannotConvert(f"{path.name} is damaged: its alignment is {alignment!r}", hint="fetch it again")
    return alignment


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _place(path: Path, name: str, shape: tuple[int, ...], type_name: str, offset: int) -> GgufTensor:
    block_weights, block_bytes = TYPES[type_name]
    if shape[-1] % block_weights:
        raise CannotConvert(
            f"{path.name} is damaged: {name} is {type_name} with rows of {shape[-1]}, no multiple of {block_weights}",
            hint="fetch it again",
        )
    return GgufTensor(name, shape, type_name, offset, math.prod(shape) // block_weights * block_bytes)
