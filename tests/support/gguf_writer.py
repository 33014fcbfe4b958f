"""Writes the container of GGUF, whole or damaged on purpose; https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TYPE_IDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "BF16": 30}
ALIGNMENT = 32


class RawTensor(NamedTuple):
    """A tensor as it lies in the file; the shape has the rows first."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    data: bytes


def write_container(
    path: Path, metadata: Mapping[str, Any], tensors: Sequence[RawTensor], *, version: int = 3, order: str = "<"
) -> None:
    """Write a GGUF file; *order* ">" makes a big-endian one (its header; who cares for the rest)."""
    head = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    data = b""
    for tensor in tensors:
        dimensions = tensor.shape[::-1]
        head += _text(tensor.name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        head += struct.pack("<IQ", tensor.type_id, len(data))
        data += _padded(tensor.data)
    path.write_bytes(_padded(head) + data)


def encode_tensor(name: str, weights: NDArray[np.float32], type_name: str) -> RawTensor:
    """Return the weights in one of the types, quantized in the simplest way where it is a quantized one."""
    type_id = TYPE_IDS[type_name]
    if type_name == "F32":
        data = weights.astype("<f4").tobytes()
    elif type_name == "F16":
        data = weights.astype("<f2").tobytes()
    elif type_name == "BF16":
        data = (weights.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        data = _quantize(weights.reshape(-1, 32), type_name)
    return RawTensor(name, weights.shape, type_id, data)


def decode_blocks(data: bytes, type_name: str) -> NDArray[np.float32]:
    """Return the weights of quantized blocks, one by one as the format describes them."""
    sizes = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
    weights = []
    for start in range(0, len(data), sizes[type_name]):
        block = data[start : start + sizes[type_name]]
        (scale,) = struct.unpack_from("<e", block)
        if type_name == "Q8_0":
            weights += [scale * q for q in struct.unpack_from("<32b", block, 2)]
            continue
        offset, least = (2, -8 * scale) if type_name == "Q4_0" else (4, struct.unpack_from("<e", block, 2)[0])
        nibbles = block[offset:]
        weights += [scale * (byte & 15) + least for byte in nibbles] + [scale * (byte >> 4) + least for byte in nibbles]
    return np.array(weights, np.float32)


def _quantize(groups: NDArray[np.float32], type_name: str) -> bytes:
    blocks = []
    for group in groups:
        low, high = float(group.min()), float(group.max())
        if type_name == "Q8_0":
            scale = max(abs(low), abs(high)) / 127
            quants = np.clip(np.round(group / scale), -127, 127).astype(np.int8)
            blocks.append(struct.pack("<e", scale) + quants.tobytes())
            continue
        scale = max(abs(low), abs(high)) / 7 if type_name == "Q4_0" else (high - low) / 15
        least = -8 * scale if type_name == "Q4_0" else low
        nibbles = np.clip(np.round((group - least) / scale), 0, 15).astype(np.uint8)
        head = struct.pack("<e", scale) if type_name == "Q4_0" else struct.pack("<ee", scale, least)
        blocks.append(head + (nibbles[:16] | nibbles[16:] << 4).tobytes())
    return b"".join(blocks)


def _text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, (str, bytes)):
        return struct.pack("<I", 8) + _text(value)
    head = struct.pack("<I", 9)
    if value and isinstance(value[0], str):
        return head + struct.pack("<IQ", 8, len(value)) + b"".join(_text(item) for item in value)
    kind, code = (6, "f") if value and isinstance(value[0], float) else (5, "i")
    return head + struct.pack(f"<IQ{len(value)}{code}", kind, len(value), *value)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
