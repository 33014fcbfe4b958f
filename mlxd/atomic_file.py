"""A small file on disk: read with its hash, replaced by temp file, fsync and rename.

All system calls go through one seam. A symlink stays a symlink: what it leads to is replaced, by a temp file
in the same folder. Mode and owner are kept; a new file is 0600. Nothing here knows what a setting is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxd.protocol.settings import MAX_FILE_BYTES

_NEW_MODE = 0o600
_READ_BYTES = 65536
# macOS: fsync hands the data to the drive, which may keep it in its cache; this has it written.
_FULL_FSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def _fsync(descriptor: int) -> None:
    if _FULL_FSYNC is not None:
        with contextlib.suppress(OSError):  # not every file system has it
            fcntl.fcntl(descriptor, _FULL_FSYNC)
            return
    os.fsync(descriptor)


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """What files and their histories ask of the system; a test puts a failing one in its place."""

    open: Callable[[str, int, int], int] = os.open
    read: Callable[[int, int], bytes] = os.read
    write: Callable[[int, memoryview], int] = os.write
    fsync: Callable[[int], None] = _fsync
    fchmod: Callable[[int, int], None] = os.fchmod
    fchown: Callable[[int, int, int], None] = os.fchown
    replace: Callable[[str, str], None] = os.replace


@dataclass(frozen=True, slots=True)
class Content:
    """What the file held when it was read; `data` is None when there is no file."""

    data: bytes | None

    @property
    def digest(self) -> str:
        """Tells contents apart; a missing file is as good as an empty one."""
        return hashlib.sha256(self.data or b"").hexdigest()


Identity = tuple[int, int]  # device and inode
Signature = tuple[int, ...] | None


def identify(path: Path | int) -> Identity | None:
    """Return what tells a file or folder, or an open one, from another in its place; None when there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_dev, found.st_ino


class AtomicFile:
    """One file that is replaced as a whole or not at all."""

    def __init__(self, path: Path, calls: SystemCalls | None = None) -> None:
        self.path = path
        self._calls = calls if calls is not None else SystemCalls()

    @property
    def target(self) -> Path:
        """The file itself, where the path is a symlink."""
        return Path(os.path.realpath(self.path))

    def read(self) -> Content:
        """Return the content.

        Raises:
            OSError: it is there and cannot be read, is no regular file, or is over `MAX_FILE_BYTES`.
        """
        try:
            # Without O_NONBLOCK a pipe in the file's place would have us wait forever.
            descriptor = self._calls.open(str(self.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, 0)
        except FileNotFoundError:
            return Content(None)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError("it is no regular file")
            data = bytearray()
            while piece := self._calls.read(descriptor, _READ_BYTES):
                data += piece
                if len(data) > MAX_FILE_BYTES:
                    raise OSError(f"it is over {MAX_FILE_BYTES} bytes")
        finally:
            os.close(descriptor)
        return Content(bytes(data))

    def signature(self) -> Signature:
        """Return what changes when the file changes, without reading it; None when there is no file."""
        try:
            found = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev

    def stage(self, data: bytes) -> StagedFile:
        """Write *data* to a temp file beside the target, down to the disk, so that only a rename is left to do.

        Raises:
            OSError: nothing is left behind.
        """
        if len(data) > MAX_FILE_BYTES:  # it could not be read again
            raise OSError(errno.EFBIG, f"it would have {len(data)} bytes, and it may have {MAX_FILE_BYTES}")
        target = self.target
        temp = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        descriptor = self._calls.open(str(temp), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _NEW_MODE)
        try:
            try:
                self._keep_mode_and_owner(descriptor, target)
                write_all(self._calls, descriptor, data)
                self._calls.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        return StagedFile(temp, target, self._calls)

    def replace(self, data: bytes) -> None:
        """Replace the content as a whole, down to the disk.

        Raises:
            OSError: the file is as it was, or a power cut might still undo the change.
        """
        staged = self.stage(data)
        try:
            staged.commit()
        finally:
            staged.discard()
        self.sync_folder()

    def _keep_mode_and_owner(self, descriptor: int, target: Path) -> None:
        try:
            old = target.stat()
        except FileNotFoundError:
            self._calls.fchmod(descriptor, _NEW_MODE)
            return
        if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(PermissionError):  # only root may give files away
                self._calls.fchown(descriptor, old.st_uid, old.st_gid)
        self._calls.fchmod(descriptor, stat.S_IMODE(old.st_mode))

    def sync_folder(self) -> None:
        """Have the rename itself written to the disk.

        Raises:
            OSError: the change is live and in the file, but a power cut might still undo it.
        """
        sync_folder(self._calls, self.target.parent)

    def remove_leftovers(self) -> None:
        """Delete temp files of a process that was killed while it wrote; only the holder of the lock may call this."""
        target = self.target
        with contextlib.suppress(OSError):
            for leftover in target.parent.glob(f".{target.name}.*.tmp"):
                leftover.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A temp file that is safely on the disk, and its one way to become the *target*; made by `AtomicFile.stage`."""

    temp: Path
    target: Path
    calls: SystemCalls

    def commit(self) -> None:
        """Replace the target in one step.

        Raises:
            OSError: the target is as it was.
        """
        self.calls.replace(str(self.temp), str(self.target))

    def discard(self) -> None:
        """Delete the temp file, if it is still there."""
        with contextlib.suppress(OSError):
            self.temp.unlink(missing_ok=True)


def sync_folder(calls: SystemCalls, folder: Path) -> None:
    """Have the names of what is in the folder written to the disk.

    Raises:
        OSError: a power cut might still undo the last renames.
    """
    descriptor = calls.open(str(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0)
    try:
        calls.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(calls: SystemCalls, descriptor: int, data: bytes) -> None:
    """Write all of *data*, however little the system takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[calls.write(descriptor, rest) :]
