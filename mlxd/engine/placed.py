"""A large tensor of a safetensors file that is read into its array in bounded pieces. Used on the device thread only.

`mx.eval` reads a whole tensor at once: 0.1 s for 400 MB from the page cache, in which no stream gets a token. MLX also
loads from Python file objects, and hands them the memory of the array to read into. The one here shows MLX a file of
this tensor alone, notes that memory and reads nothing: the array is there at once, and its bytes follow slice by slice.
Joining arrays of a few rows each would copy all of them at the end and hold the tensor twice.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlxd.engine.model_file import open_regular
from mlxd.engine.safetensors_header import Tensor
from mlxd.protocol.errors import LoadFailed

_MARK = 0x5A


class PlacedTensor:
    """An array that is in memory, and the bytes of it that are still to be read."""

    def __init__(self, path: Path, tensor: Tensor) -> None:
        """Take the memory for *tensor* of the file at *path*.

        Raises:
            OSError: the file cannot be opened.
            Exception: whatever MLX raises on a tensor that it does not know.
        """
        shown = _ShownFile(tensor)
        self.array = cast("dict[str, mx.array]", mx.load(cast("Any", shown), format="safetensors"))[tensor.name]
        self._view = shown.memory
        self._done_bytes = 0
        self._offset = tensor.offset
        self._file = cast("io.BufferedReader", open_regular(path))

    def is_in_place(self) -> bool:
        """Whether what is read goes into the array: MLX does not promise to hand out the array's own memory."""
        if self._view.nbytes != self.array.nbytes:
            return False
        mark = bytes([_MARK]) * self.array.itemsize
        self._view[-len(mark) :] = mark
        return bytes(cast("Any", mx.view(self.array.reshape(-1)[-1:], mx.uint8))) == mark

    @property
    def is_whole(self) -> bool:
        """Whether all of it has been read."""
        return self._done_bytes == self._view.nbytes

    def read(self, max_bytes: int) -> int:
        """Read the next *max_bytes*, and return how many bytes were read.

        Raises:
            LoadFailed: the file has become shorter.
        """
        end_bytes = min(self._done_bytes + max_bytes, self._view.nbytes)
        begin_bytes = self._done_bytes
        self._file.seek(self._offset + begin_bytes)
        while self._done_bytes < end_bytes:
            n_bytes = self._file.readinto(self._view[self._done_bytes : end_bytes])
            if not n_bytes:
                raise LoadFailed(f"{self._file.name} is cut short")
            self._done_bytes += n_bytes
        return end_bytes - begin_bytes

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _ShownFile:
    """A safetensors file of one tensor for `mx.load`, which reads its header; where its data goes is only noted."""

    def __init__(self, tensor: Tensor) -> None:
        fields = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (0, tensor.n_bytes)}
        header = json.dumps({tensor.name: fields}).encode()
        self._header = len(header).to_bytes(8, "little") + header
        self._size_bytes = len(self._header) + tensor.n_bytes
        self._position = 0
        self.memory = memoryview(b"")
        self.closed = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, memory: memoryview) -> int:
        if self._position < len(self._header):
            part = self._header[self._position : self._position + memory.nbytes]
            memory[: len(part)] = part
            self._position += len(part)
            return len(part)
        self.memory = memory
        self._position += memory.nbytes
        return memory.nbytes
