"""A GGUF file: its metadata, where its tensors lie, and their weights as MLX holds them.

The `gguf` package reads the header. It trusts every length in it, so each is checked here first. What MLX has the same
groups for stays as it is, bit for bit; the package dequantizes the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, dequantize
from numpy.typing import NDArray

from mlxd.download.errors import CannotConvert

Metadata = Mapping[str, Any]
# An array under "" when it is plain, else "weight", "scales" and "biases".
Parts = dict[str, mx.array]

# MLX has these bit for bit, in so many bits; None: floats. All that are packed scale groups of 32.
EXACT_BITS = {"F32": None, "F16": None, "BF16": None, "Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
GROUP_SIZE = 32
_FLOATS = {"F32": ("<f4", mx.float32), "F16": ("<f2", mx.float16), "BF16": ("<u2", mx.bfloat16)}
# The largest known header, of a vocabulary of 256,000 tokens with merges, is a fifth of this.
_HEADER_BYTES = 64 << 20
# Of the floats that a tensor becomes on its way to groups of MLX's.
_SLICE_BYTES = 64 << 20
_MAGIC = b"GGUF"
_OLD_MAGICS = (b"lmgg", b"tjgg", b"fmgg", b"algg")  # ggml, ggjt, ggmf, ggla as they lie in the file
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_AGAIN = "fetch it again"


class GgufTensor(NamedTuple):
    """One tensor: its name, its shape with the rows first, its type's name, and its place in the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    n_bytes: int

    def bits(self, wanted: int | None) -> int | None:
        """Return the bits that the weights are quantized to in MLX, None for floats; vectors always are.

        Without a wish they have those of their type where MLX has them too, else the next of 4 and 8.
        """
        if wanted == 16 or len(self.shape) != 2 or self.shape[-1] % GROUP_SIZE:
            return None
        if wanted is not None or self.type_name in EXACT_BITS:
            return EXACT_BITS[self.type_name] if wanted is None else wanted
        n_weights, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.type_name]]
        return 4 if 8 * n_bytes <= 5 * n_weights else 8  # with its scales, Q4_K has 4.5 bits a weight


class GgufFile(NamedTuple):
    """A file whose header is sound, and which is as long as its header says."""

    path: Path
    metadata: Metadata
    tensors: tuple[GgufTensor, ...]

    def read(self, tensor: GgufTensor, bits: int | None) -> Parts:
        """Return a tensor in groups of *bits*, or plain: bit for bit where MLX can, else computed anew.

        Raises:
            CannotConvert: the file has become shorter.
            OSError: it could not be read.
        """
        data = np.fromfile(self.path, np.uint8, tensor.n_bytes, offset=tensor.offset)
        if len(data) != tensor.n_bytes:
            raise CannotConvert(f"{self.path.name} became shorter while it was read", hint="repeat the command")
        if EXACT_BITS.get(tensor.type_name, 0) != bits:
            return _computed(tensor, data, bits)
        if bits is not None:
            return _exact(tensor, data)
        numbers, dtype = _FLOATS[tensor.type_name]
        return {"": mx.array(data.view(numbers).reshape(tensor.shape)).view(dtype)}


def read_gguf(path: Path) -> GgufFile:
    """Read the header of *path*.

    Raises:
        CannotConvert: it is no GGUF file, damaged, cut off, a part of several, or of types that nothing here reads.
        OSError: it could not be read.
    """
    with path.open("rb") as file:
        beginning = file.read(64)
    if not beginning.startswith(_MAGIC):
        hint = "mlxctl model pull ORG/NAME, for a model of the hub that is made for MLX"
        raise CannotConvert(f"{path.name} is not a GGUF file: {_describe_other(beginning)}", hint=hint)
    try:
        with np.errstate(over="raise"):
            reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except EOFError:
        size = path.stat().st_size
        raise CannotConvert(f"{path.name} is cut off: it has {size} bytes, and names more", hint=_AGAIN) from None
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = re.sub(r"np\.\w+\((\d+)\)", r"\1", str(error))
        raise CannotConvert(f"{path.name} is damaged, or newer than this program: {reason}", hint=_AGAIN) from None
    if reader.byte_order == "S":
        raise CannotConvert(
            f"{path.name} is a big-endian GGUF file, for other machines", hint="fetch the little-endian one"
        )
    _refuse_part(path, metadata)
    tensors = tuple(
        GgufTensor(
            tensor.name,
            tuple(reversed(tensor.shape.tolist())),
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        for tensor in reader.tensors
    )
    _refuse_types(path, [tensor.type_name for tensor in tensors])
    return GgufFile(path, metadata, tensors)


class _Reader(GGUFReader):  # type: ignore[misc]
    """The package's reader, which would loop over a made-up length, and read nothing where there is nothing."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray[Any]:
        if offset + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise EOFError
        found: NDArray[Any] = super()._get(offset, dtype, count, override_order)
        return found

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        """Read an array at once: the package takes twenty seconds for a large vocabulary."""
        if orig_offs > _HEADER_BYTES:
            raise ValueError(f"its metadata are over {_HEADER_BYTES >> 20} MiB")
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        length, start = int(self._get(orig_offs + 4, np.uint64)[0]), orig_offs + 12
        if kind != GGUFValueType.STRING:
            numbers = self._get(start, self.gguf_scalar_to_np[kind], length)
            return 12 + numbers.nbytes, [numbers], [0], [GGUFValueType.ARRAY, kind]
        texts: list[Any] = []
        data, end = self.data.data, start
        self._get(start, np.uint64, length)  # a made-up length ends here, not after a loop over it
        for _ in range(length):
            first = end + 8
            end = first + int.from_bytes(data[end:first], "little")
            if end > len(data):
                raise EOFError
            texts.append(data[first:end])
        return end - orig_offs, texts, list(range(length)), [GGUFValueType.ARRAY, kind]


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


def _refuse_types(path: Path, names: list[str]) -> None:
    refused = {name: names.count(name) for name in sorted(set(names)) if not _is_known(name)}
    if not refused:
        return
    counted = ", ".join(f"{name} ({count} of {len(names)})" for name, count in refused.items())
    raise CannotConvert(
        f"{path.name} has tensors of types that cannot be converted: {counted}",
        hint="the same model as Q8_0, Q4_K_M or F16; or one made for MLX: mlxctl model pull ORG/NAME",
        data={"types": refused},
    )


def _is_known(type_name: str) -> bool:
    """Whether the package dequantizes a type, by a block of zeros."""
    kind = GGMLQuantizationType[type_name]
    try:
        _dequantized(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), type_name)
    except NotImplementedError:
        return False
    return True


def _dequantized(data: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # a block whose scale is no number has weights that are none
        floats: NDArray[np.float32] = dequantize(data, GGMLQuantizationType[type_name])
    return floats


def _computed(tensor: GgufTensor, data: NDArray[np.uint8], bits: int | None) -> Parts:
    """Return weights that are dequantized, and quantized again to *bits*, some rows at a time."""
    rows = data.reshape(-1, tensor.n_bytes // max(1, int(np.prod(tensor.shape[:-1]))))
    step = max(1, _SLICE_BYTES // (4 * tensor.shape[-1]))
    made = []
    for start in range(0, len(rows), step):
        floats = mx.array(_dequantized(rows[start : start + step], tensor.type_name))
        made.append([floats] if bits is None else mx.quantize(floats, GROUP_SIZE, bits))
        mx.eval(made[-1])
    arrays = [mx.concatenate(list(pieces)) for pieces in zip(*made, strict=True)]
    if bits is None:
        return {"": arrays[0].reshape(tensor.shape)}
    return dict(zip(("weight", "scales", "biases"), arrays, strict=True))


def _exact(tensor: GgufTensor, data: NDArray[np.uint8]) -> Parts:
    """Return packed weights, scales and biases: w = scale * q + bias, q unsigned, the first q in the lowest bits."""
    blocks = data.reshape(-1, GGML_QUANT_SIZES[GGMLQuantizationType[tensor.type_name]][1])
    scales = blocks[:, :2].copy().view("<f2")
    if tensor.type_name == "Q8_0":  # d, 32 x int8; w = d * q
        packed, biases = (blocks[:, 2:] ^ np.uint8(0x80)).view("<u4"), scales * np.float16(-128)
    elif tensor.type_name == "Q4_0":  # d, 32 x nibble; w = d * (q - 8)
        packed, biases = _repack_nibbles(blocks[:, 2:]), scales * np.float16(-8)
    else:  # Q4_1: d, m, 32 x nibble; w = d * q + m
        packed, biases = _repack_nibbles(blocks[:, 4:]), blocks[:, 2:4].copy().view("<f2")
    parts = {"weight": packed, "scales": scales, "biases": biases}
    return {part: mx.array(array.reshape(*tensor.shape[:-1], -1)) for part, array in parts.items()}


def _repack_nibbles(nibbles: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Bring 32 weights in order: byte i has weight i in its low half and weight i + 16 in its high half."""
    weights = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1)
    pairs: NDArray[np.uint8] = weights[:, 0::2] | (weights[:, 1::2] << 4)
    return pairs.view("<u4")
