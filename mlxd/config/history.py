"""The last committed versions of the settings file, `history/GENERATION.toml`; they keep the generation number, too."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

KEPT_VERSIONS = 50


class History:
    """A folder of past versions, named by generation. Losing it loses no setting."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made with the first version."""
        self._folder = folder

    def generations(self) -> list[int]:
        """Return the generations that are kept, oldest first."""
        try:
            names = [path.name for path in self._folder.iterdir()]
        except OSError:
            return []
        stems = [name.removesuffix(".toml") for name in names if name.endswith(".toml")]
        return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())

    def read(self, generation: int) -> bytes | None:
        """Return the file as it was committed as *generation*; None when it is not kept."""
        try:
            return self._path(generation).read_bytes()
        except OSError:
            return None

    def keep(self, generation: int, data: bytes) -> None:
        """Keep *data* as *generation* and drop the oldest beyond `KEPT_VERSIONS`.

        Raises:
            OSError: it is not kept.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temp = self._folder / f".{generation}.tmp"
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            temp.replace(self._path(generation))
        finally:
            temp.unlink(missing_ok=True)
        for old in self.generations()[:-KEPT_VERSIONS]:
            with contextlib.suppress(OSError):
                self._path(old).unlink()

    def _path(self, generation: int) -> Path:
        return self._folder / f"{generation}.toml"
