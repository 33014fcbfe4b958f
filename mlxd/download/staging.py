"""Making a folder so that it is there whole or not at all: lock, hidden folder, fsync, rename.

What is made lies in `.NAME.RANDOM.partial` beside its target, which the catalog does not list. Whoever holds the flock
on `.NAME.lock` may make it; so a `.partial` whose lock is free was left by a process that died, and is swept away. Lock
files stay: removing one while another process waits on it would give two processes a lock each.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mlxd.download.errors import NotAFolder, disk_full

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_CHUNK_BYTES = 8 << 20


def ensure_folder(folder: Path, mode: int = 0o777) -> None:
    """Make *folder* and its parents; *mode* counts for *folder* when it is made.

    Raises:
        NotAFolder: something else is in its way.
        OSError: it could not be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            folder.mkdir(mode)
    except (FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        if not folder.is_dir():  # another process may have made it meanwhile
            raise NotAFolder(
                f"the folder {folder} cannot be made: {error.filename}: {error.strerror}",
                hint="another MLXD_HOME; for models of the hub another HF_HOME",
            ) from error


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise DiskFull when the file system of *folder* has less than *needed_bytes* free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise disk_full(folder, needed_bytes, free_bytes)


@contextlib.contextmanager
def locked(folder: Path, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of *name* in *folder*; *on_wait* is called before waiting for another process."""
    with (folder / f".{name}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def partial(folder: Path, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder that is gone at the end; the caller holds the lock of *name*."""
    for left in folder.glob(f".{name}.*.partial"):
        shutil.rmtree(left, ignore_errors=True)
    # A new name each time: a child of the dead process may still be writing into the old folder.
    stage = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=folder))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what dead processes left half-made in *folder*."""
    for stage in folder.glob(".*.partial"):
        name = stage.name.removeprefix(".").removesuffix(".partial").rpartition(".")[0]
        with (folder / f".{name}.lock").open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its maker is alive
            shutil.rmtree(stage, ignore_errors=True)


def publish(made: Path, target: Path) -> None:
    """Rename *made*, a folder or a file of the same file system, to *target*, durably; what was there is replaced."""
    for path in sorted(made.rglob("*")) if made.is_dir() else []:
        _fsync(path)
    _fsync(made)
    if made.is_dir() and target.exists():
        target.rename(made.with_name(made.name + ".old"))  # goes with the hidden folder
    made.rename(target)
    _fsync(target.parent)


def open_counted(path: Path, on_bytes: Callable[[int], None]) -> BinaryIO:
    """Open *path* for writing; *on_bytes* gets the size of each piece that was written."""
    return io.BufferedWriter(_CountedFile(path, on_bytes), buffer_size=1 << 20)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _CountedFile(io.FileIO):
    """Writes in pieces, so that a tensor of a gigabyte still moves the progress."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        super().__init__(path, "wb")
        self._on_bytes = on_bytes

    def write(self, data: ReadableBuffer, /) -> int:
        written = super().write(memoryview(data).cast("B")[:_CHUNK_BYTES])
        self._on_bytes(written)
        return written
