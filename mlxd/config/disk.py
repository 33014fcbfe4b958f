"""What the store has on the disk, the file and its history, in the words of errors that a user can act on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from mlxd.atomic_file import AtomicFile, Content, Identity, StagedFile, SystemCalls, identify
from mlxd.config.history import History, Record
from mlxd.protocol.errors import CommitFailed, Conflict, FileInvalid, FileMissing

# An editor that truncates and writes is done within this; only a file that was edited is looked at twice.
SETTLE_S = 0.05
_LOOKS = 40
_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EROFS: "make the disk writable, it is read-only",
    errno.EBUSY: "the file is a mount point; mount its folder instead",
    errno.EFBIG: "take out what is not needed",
}
_RUNTIME_ONLY = "\nthe same with --runtime-only, until the next start"
_log = logging.getLogger(__name__)


class Disk:
    """The settings file and its history."""

    def __init__(
        self, path: Path, history: Path, calls: SystemCalls | None, pause: Callable[[float], Awaitable[object]]
    ) -> None:
        """Take the paths, the system calls, and how to wait for an editor that is writing."""
        self.file = AtomicFile(path, calls)
        self.history = History(history, calls)
        self._pause = pause
        self._folders = self._find_folders()
        self.file.remove_leftovers()

    def read(self) -> Content:
        """Return what the file holds; nothing when it was deleted.

        Raises:
            FileInvalid: it cannot be read.
            FileMissing: its folder is gone too.
        """
        try:
            content = self.file.read()
        except OSError as error:
            reason = error.strerror or error
            raise FileInvalid(f"{self.file.path} cannot be read: {reason}", hint="mlxctl config path") from None
        folders = self._find_folders()
        if content.data is None and self._folders and identify(self.file.target.parent) not in self._folders:
            folder = self.file.target.parent
            raise FileMissing(
                f"{self.file.path} is gone: its folder {folder} was moved away, deleted or unmounted",
                hint=f"put {folder} back, or stop the daemon: mlxctl stop",
            )
        self._folders = folders
        return content

    def _find_folders(self) -> frozenset[Identity]:
        """Return which folders the path and, of a symlink, the file are in; nothing where there are none."""
        found = (identify(self.file.path.parent), identify(self.file.target.parent))
        return frozenset(folder for folder in found if folder is not None)

    async def read_settled(self, known: str | None) -> Content:
        """Return what the file holds, once an editor that writes it in steps is done; at once if it is the *known*.

        Raises:
            FileInvalid: it cannot be read.
            Conflict: it does not come to rest.
        """
        content = self.read()
        for _ in range(_LOOKS):
            if content.digest == known:
                return content
            await self._pause(SETTLE_S)
            before, content = content, self.read()
            if before.digest == content.digest:
                return content
        raise Conflict(f"{self.file.path.name} is being written by another program", hint="try again")

    async def stage(self, data: bytes, expected: str, rejected: tuple[int, bytes] | None) -> Staged:
        """Write *data* beside the file, so that only the rename is left to do; keep a *rejected* file first.

        Raises:
            CommitFailed: nothing was changed, and nothing is left behind.
        """

        def work() -> Staged:
            kept = None if rejected is None else self.history.keep_rejected(*rejected)
            return Staged(self.file, self.file.stage(data), expected, kept)

        with self.in_words():
            return await asyncio.to_thread(work)

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Raise an OSError as CommitFailed, with the remedy."""
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno, f"check owner and mode of {self.file.target.parent}")
            raise CommitFailed(
                f"{self.file.path} could not be written: {error.strerror or error}; nothing was changed",
                hint=remedy + _RUNTIME_ONLY,
            ) from None

    async def make_durable(self, record: Record, data: bytes | None) -> list[str]:
        """Have the change on the disk for good, and in the history; return what failed of that as warnings.

        Without *data* the file was not changed: there is only a record to keep, whose loss is no matter.
        """

        def work() -> list[str]:
            warnings = []
            if data is not None:
                try:
                    self.file.sync_folder()
                except OSError as error:
                    warnings.append(f"not_durable: {error.strerror or error}")
            try:
                self.history.keep(record, data)
            except OSError as error:
                if data is not None:
                    warnings.append(f"no_history: {error.strerror or error}")
                self._reserve(record.generation)
            return warnings

        return await asyncio.to_thread(work)

    def _reserve(self, generation: int) -> None:
        try:
            self.history.reserve(generation)
        except OSError as error:
            _log.warning("the number of generation %s cannot be kept: %s", generation, error)

    def boot_generation(self, data: bytes | None) -> int:
        """Return the generation to go on from; *data* is the file, None when it is not valid.

        A file that is not the last version kept was edited while nobody ran: it is a generation of its own.
        """
        kept, last = self.history.generations(), self.history.last()
        is_known = data is None or (not kept and not data) or (kept and self.history.read(kept[-1]) == data)
        generation = last if is_known else last + 1
        if data is not None and not is_known:
            try:
                self.history.keep(Record(generation, now_ms(), "file", (), has_version=True), data)
            except OSError as error:
                _log.warning("no history of the settings: %s", error)
        self._reserve(generation)  # makes the file while there is room for one
        return generation


class Staged:
    """A file that is ready to become the settings file."""

    def __init__(self, file: AtomicFile, staged: StagedFile, expected: str, kept: Path | None) -> None:
        """Made by `Disk.stage` only; *kept* is where the file that it replaces was put aside."""
        self.kept = kept
        self._file = file
        self._staged = staged
        self._expected = expected

    def commit(self) -> bool:
        """Rename, unless the file is no longer what was expected; tell whether it was done.

        Raises:
            OSError: it could not be done.
        """
        # A symlink may lead elsewhere by now, to a file with the same text.
        if self._file.read().digest != self._expected or self._staged.target != self._file.target:
            return False
        self._staged.commit()
        return True

    def discard(self) -> None:
        """Leave nothing behind."""
        self._staged.discard()


def now_ms() -> int:
    """Return unix time, for records that people read."""
    return int(time.time() * 1000)
