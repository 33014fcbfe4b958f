"""Notices that a file was edited by hand, by looking at it from time to time without reading it."""

from __future__ import annotations

from mlxd.atomic_file import AtomicFile, Identity, Signature, identify

Look = tuple[Signature, Identity | None]  # of the file, and of its folder


class FileWatch:
    """What the file looked like when it was last looked at, and when it was last read."""

    def __init__(self, file: AtomicFile) -> None:
        """Take the file, which somebody reads now."""
        self._file = file
        self._seen = self._look()
        self._read: Look | None = None
        self._is_known = False

    def is_due(self) -> bool:
        """Look; tell whether the file should be read: two looks in a row saw the same, and it was not read like that.

        A missing file is looked at like any other, and so is its folder. Who is told so reads it.
        """
        look = self._look()
        is_settled, self._seen = look == self._seen, look
        if not is_settled or (self._is_known and look == self._read):
            return False
        self._read, self._is_known = look, True
        return True

    def _look(self) -> Look:
        return self._file.signature(), identify(self._file.path.parent)

    def forget(self) -> None:
        """Have the file read once more when it has settled.

        Called whenever another file came into force: an edit in the same tick of the file system's clock
        does not show in the signature, and would never be noticed.
        """
        self._is_known = False
