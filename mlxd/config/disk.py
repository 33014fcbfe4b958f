"""The settings file and its history on disk, with errors that a user can act on."""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from mlxd.atomic_file import AtomicFile, Content, Identity, Signature, StagedFile, SystemCalls, identify
from mlxd.clock import now_ms
from mlxd.config import document
from mlxd.config.document import Version
from mlxd.config.history import History, Record
from mlxd.protocol.errors import CommitFailed, Conflict, FileInvalid, FileMissing, NotFound, SettingsError
from mlxd.protocol.settings import Settings

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

Look = tuple[Signature, Identity | None]  # of the file, and of its folder


class Disk:
    """The settings file and its history."""

    def __init__(
        self,
        path: Path,
        history: Path,
        usable_bytes: int,
        validate: Callable[[Settings], object],
        calls: SystemCalls | None,
        pause: Callable[[float], Awaitable[object]],
    ) -> None:
        """Take what `SettingsStore` takes."""
        self.file = AtomicFile(path, calls)
        self.history = History(history, calls)
        self._usable_bytes = usable_bytes
        self._validate = validate
        self._pause = pause
        self._folders = self._find_folders()
        self._seen = self._look()  # somebody reads it now
        self._read_as: Look | None = None  # as it looked when it was read last; None: read it again
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

    def parse(self, content: Content, name: str | None = None) -> Version:
        """Return what *content* stands for, which is the settings file unless it has another *name*.

        Raises:
            FileInvalid: no daemon can start with it; with file:line:col.
        """
        shown = name or self.file.path.name
        try:
            version = document.parse(content.data or b"", shown, self._usable_bytes)
            try:
                self._validate(version.settings)
            except SettingsError as error:
                raise document.blame(error, version.text, shown) from None
        except FileInvalid as error:
            if name is None:
                self.name_way_back(error)
            raise
        return version

    def version_of(self, generation: int) -> Version:
        """Return the file as it was in *generation*.

        Raises:
            NotFound: it is not kept.
            FileInvalid: this version of mlxd cannot use it.
        """
        data = self.history.read(generation)
        if data is None:
            kept = self.history.generations()
            known = f"{len(kept)} are, from {kept[0]} to {kept[-1]}" if kept else "there is none yet"
            raise NotFound(f"no file of generation {generation} is kept; {known}", hint="mlxctl config history")
        return self.parse(Content(data), f"history/{generation}.toml")

    def _find_folders(self) -> frozenset[Identity]:
        """Return which folders the path and, of a symlink, the file are in; nothing where there are none."""
        found = (identify(self.file.path.parent), identify(self.file.target.parent))
        return frozenset(folder for folder in found if folder is not None)

    def is_due(self) -> bool:
        """Look; tell whether the file should be read: two looks in a row saw the same, and it was not read like that.

        A missing file is looked at like any other, and so is its folder. The caller must then read it.
        """
        look = self._look()
        is_settled, self._seen = look == self._seen, look
        if not is_settled or look == self._read_as:
            return False
        self._read_as = look
        return True

    def forget(self) -> None:
        """Have the file read once more when it has settled.

        Called whenever another file came into force: an edit in the same tick of the file system's clock
        does not show in the signature, and would never be noticed.
        """
        self._read_as = None

    def _look(self) -> Look:
        return self.file.signature(), identify(self.file.path.parent)

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

    def stage(self, data: bytes, rejected: tuple[int, bytes] | None) -> tuple[StagedFile, Path | None]:
        """Write *data* beside the file, so that only the rename is left to do; keep a *rejected* file first.

        Args:
            data: the new file.
            rejected: the generation that replaces a file that is not valid, and what that holds.

        Returns:
            the file, and where the rejected one is kept.

        Raises:
            CommitFailed: nothing was changed, and nothing is left behind.
        """
        with self._in_words():
            kept = None if rejected is None else self.history.keep_rejected(*rejected)
            return self.file.stage(data), kept

    def commit(self, staged: StagedFile, expected: str | None) -> bool:
        """Rename, unless the file is no longer what was *expected*; tell whether it was done.

        Raises:
            CommitFailed: nothing was changed.
        """
        with self._in_words():
            # A symlink may lead elsewhere by now, to a file with the same text.
            is_expected = self.file.read().digest == expected and staged.target == self.file.target
            if is_expected:
                staged.commit()
            return is_expected

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """Raise an OSError as CommitFailed, with the remedy."""
        try:
            yield
        except OSError as error:
            remedy = _REMEDIES.get(error.errno, f"check owner and mode of {self.file.target.parent}")
            raise CommitFailed(
                f"{self.file.path} could not be written: {error.strerror or error}; nothing was changed",
                hint=remedy + _RUNTIME_ONLY,
            ) from None

    def make_durable(self, record: Record, data: bytes | None) -> list[str]:
        """Have the change on the disk for good, and in the history; return what failed of that as warnings.

        Without *data* the file was not changed: there is only a record to keep, whose loss is no matter.
        """
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

    def describe_deletion(self) -> str:
        """Return the warning for a file that is gone, with the way back."""
        kept = self.history.generations()
        way_back = f"; to have it back: mlxctl config rollback {kept[-1]}" if kept else ""
        return f"{self.file.path.name} was deleted, so the defaults are in force{way_back}"

    def name_way_back(self, problem: FileInvalid) -> None:
        """Give the error of a file that is not valid its hint."""
        if "line" not in problem.data:
            return  # it could not even be read
        ways = ["mlxctl config edit"]
        kept = self.history.generations()
        if kept:
            problem.data["rollback"] = kept[-1]
            ways.append(f"mlxctl config rollback {kept[-1]}")
        problem.hint = "\n".join(ways)

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
