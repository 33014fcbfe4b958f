"""Tensors of a GGUF file as MLX holds them: plain arrays, or packed weights with scales and biases, bit for bit.

The result equals what `mx.load` makes of the same file; a test compares them.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxd.download.gguf_file import GgufTensor

# Q4_0, Q4_1 and Q8_0 all scale groups of 32.
GROUP_SIZE = 32
QUANTIZED_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
_FLOATS = {"F32": "<f4", "F16": "<f2"}

Parts = dict[str, mx.array]


def to_arrays(tensor: GgufTensor, data: NDArray[np.uint8]) -> Parts:
    """Return the array of a tensor, under "" when it is plain, else under "weight", "scales" and "biases".

    Args:
        tensor: name, shape and type.
        data: its bytes.
    """
    if tensor.type_name == "BF16":
        return {"": mx.array(data.view("<u2").reshape(tensor.shape)).view(mx.bfloat16)}
    if tensor.type_name in _FLOATS:
        return {"": mx.array(data.view(_FLOATS[tensor.type_name]).reshape(tensor.shape))}
    packed, scales, biases = _split_blocks(tensor.type_name, data)
    shape = tensor.shape[:-1]
    return {
        "weight": mx.array(packed.reshape(*shape, -1)),
        "scales": mx.array(scales.reshape(*shape, -1)),
        "biases": mx.array(biases.reshape(*shape, -1)),
    }


def output_bytes(tensor: GgufTensor, float_itemsize: int) -> int:
    """Return the bytes that the arrays of a tensor take when their floats take *float_itemsize*."""
    n_weights = int(np.prod(tensor.shape, dtype=np.int64))
    bits = QUANTIZED_BITS.get(tensor.type_name)
    if bits is None:
        return n_weights * float_itemsize
    return n_weights * bits // 8 + 2 * (n_weights // GROUP_SIZE) * float_itemsize


def _split_blocks(
    type_name: str, data: NDArray[np.uint8]
) -> tuple[NDArray[np.uint32], NDArray[np.float16], NDArray[np.float16]]:
    """Return packed weights, scales and biases: w = scale * q + bias, q unsigned, the first q in the lowest bits."""
    if type_name == "Q8_0":  # d, 32 x int8; w = d * q
        blocks = data.reshape(-1, 34)
        scales = blocks[:, :2].copy().view("<f2")
        unsigned = blocks[:, 2:] ^ np.uint8(0x80)
        return unsigned.view("<u4"), scales, scales * np.float16(-128)
    if type_name == "Q4_0":  # d, 32 x nibble; w = d * (q - 8)
        blocks = data.reshape(-1, 18)
        scales = blocks[:, :2].copy().view("<f2")
        return _repack_nibbles(blocks[:, 2:]), scales, scales * np.float16(-8)
    blocks = data.reshape(-1, 20)  # Q4_1: d, m, 32 x nibble; w = d * q + m
    floats = blocks[:, :4].copy().view("<f2")
    return _repack_nibbles(blocks[:, 4:]), floats[:, :1].copy(), floats[:, 1:].copy()


def _repack_nibbles(nibbles: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Bring 32 weights in order: byte i has weight i in its low half and weight i + 16 in its high half."""
    weights = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1)
    pairs: NDArray[np.uint8] = weights[:, 0::2] | (weights[:, 1::2] << 4)
    return pairs.view("<u4")
