"""Writes GGUF files with llama.cpp's own package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, quantize
from numpy.typing import NDArray


class RawTensor(NamedTuple):
    """A tensor as it lies in the file; the shape has the rows first."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    data: bytes


def write_container(path: Path, metadata: Mapping[str, Any], tensors: Sequence[RawTensor]) -> None:
    """Write a GGUF file, whatever is in it."""
    writer = GGUFWriter(path, "")
    for key, value in metadata.items():
        is_alignment = key == "general.alignment"
        writer.add_key_value(key, value, GGUFValueType.UINT32 if is_alignment else GGUFValueType.get_type(value))
    for tensor in tensors:
        kind = GGMLQuantizationType[tensor.type_name]
        n_weights, n_bytes = GGML_QUANT_SIZES[kind]
        shape = (*tensor.shape[:-1], tensor.shape[-1] // n_weights * n_bytes)
        writer.add_tensor(tensor.name, np.frombuffer(tensor.data, np.uint8).reshape(shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def encode_tensor(name: str, weights: NDArray[np.float32], type_name: str) -> RawTensor:
    """Return the weights in one of the types; random blocks where the package can only read it."""
    kind = GGMLQuantizationType[type_name]
    try:
        data = quantize(weights, kind).tobytes()
    except NotImplementedError:
        n_weights, n_bytes = GGML_QUANT_SIZES[kind]
        # Two small bytes are a small float16, wherever a block has its scale.
        data = np.random.default_rng(5).integers(0, 0x30, weights.size // n_weights * n_bytes, np.uint8).tobytes()
    return RawTensor(name, weights.shape, type_name, data)
