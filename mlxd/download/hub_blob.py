"""One big file of a hub repository into the Hugging Face cache, going on where an earlier process stopped.

The client itself starts a file anew when its process ended, which loses gigabytes. So the weights are put where it
looks for them, `blobs/SHA256`, and the client links the snapshot to them. The bytes of all files make one progress.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO, cast

import httpx2
from huggingface_hub import hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there, not exported
from huggingface_hub.utils.tqdm import tqdm

from mlxd.download.errors import ChecksumMismatch
from mlxd.download.progress import Reporter


@dataclass(frozen=True, slots=True)
class BigFile:
    """A file that the hub knows by its SHA-256 (its LFS files)."""

    path: str
    size_bytes: int
    sha256: str


def fetch_blob(repository: str, commit: str, file: BigFile, blobs: Path, meter: Meter) -> None:
    """Make `blobs/SHA256` of *file*, from what an earlier process left of it if there is any.

    Raises:
        ChecksumMismatch: what came is not what the hub has; it is thrown away.
        HUB_ERRORS: see `hub_errors.py`; what came so far is kept.
    """
    blob = blobs / file.sha256
    partial = _partial(file, blobs)
    blobs.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as out:
        fcntl.flock(out, fcntl.LOCK_EX)
        if blob.exists():  # another process made it meanwhile
            partial.unlink(missing_ok=True)
            meter.add(file.size_bytes)
            return
        if out.seek(0, os.SEEK_END) > file.size_bytes:
            out.truncate(0)
        hashed = HashedFile(out)
        _fetch(repository, commit, file, cast("BinaryIO", hashed), meter)
        out.flush()
        os.fsync(out.fileno())
        if hashed.sha256 != file.sha256:
            out.truncate(0)
            raise ChecksumMismatch(
                f"what came of {file.path} is not what the hub has; it was thrown away", hint="repeat the command"
            )
        partial.rename(blob)


def partial_bytes(file: BigFile, blobs: Path) -> int:
    """Return how much of *file* an earlier process left."""
    try:
        return min(_partial(file, blobs).stat().st_size, file.size_bytes)
    except FileNotFoundError:
        return 0


def _partial(file: BigFile, blobs: Path) -> Path:
    # Not the client's own name for partial files: those have a random part, and are nobody's after their process.
    return blobs / f"{file.sha256}.mlxd.incomplete"


def _fetch(repository: str, commit: str, file: BigFile, out: BinaryIO, meter: Meter) -> None:
    """Append the rest of *file*; a connection that breaks is made again as long as each brings something."""
    url = hf_hub_url(repository, file.path, revision=commit)
    bar = file_bar(meter)
    while True:
        had_bytes = out.seek(0, os.SEEK_END)
        if had_bytes == file.size_bytes:
            meter.add(had_bytes)
            return
        try:
            http_get(
                url,
                out,
                resume_size=had_bytes,
                headers=build_hf_headers(library_name="mlxd"),
                expected_size=file.size_bytes,
                tqdm_class=bar,
            )
            return
        except (httpx2.ReadError, httpx2.RemoteProtocolError):
            # The client goes on by itself after an early end, and not after a reset.
            have_bytes = out.seek(0, os.SEEK_END)
            if have_bytes <= had_bytes:
                raise
            meter.add(-have_bytes)


class HashedFile:
    """A file that is hashed as it is appended to; what it holds already is read once."""

    def __init__(self, file: BufferedRandom) -> None:
        """Take a file that can be read and written."""
        self._file = file
        self._hash = self._read()

    @property
    def sha256(self) -> str:
        """Of its whole content."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Append *data*."""
        self._hash.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to where the file is cut off, or to its end."""
        return self._file.seek(offset, whence)

    def truncate(self) -> None:
        """Cut the file off here: a server that sends all of it again has ignored what was there."""
        self._file.truncate()
        self._hash = self._read()

    def _read(self) -> hashlib._Hash:
        self._file.seek(0)
        found = hashlib.file_digest(self._file, "sha256")
        self._file.seek(0, os.SEEK_END)
        return found


class Meter:
    """Counts towards the total of a pull."""

    def __init__(self, reporter: Reporter, total_bytes: int, done_bytes: int) -> None:
        """Start with *done_bytes* of *total_bytes* that are on disk already."""
        self._reporter = reporter
        self._total_bytes = total_bytes
        self._done_bytes = done_bytes
        self._lock = threading.Lock()
        self.add(0)

    def add(self, n_bytes: int) -> None:
        """Count *n_bytes* more, which is less than 0 when bytes were thrown away."""
        with self._lock:
            self._done_bytes += n_bytes
            self._reporter.progress("downloading", min(self._done_bytes, self._total_bytes), self._total_bytes)


def file_bar(meter: Meter) -> type[tqdm]:
    """Return the class of bar that the client is given for one file; it shows nothing and feeds *meter*."""

    class FileBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            meter.add(int(options.get("initial") or 0))

        def update(self, n: float | None = 1) -> None:
            meter.add(int(n or 0))

    return FileBar


def snapshot_bar(meter: Meter) -> type[tqdm]:
    """Return the class of bar for a whole snapshot.

    The client makes several: of files, of bytes received and of bytes written. The two of bytes count the same, so what
    is furthest counts.
    """
    furthest_bytes = 0
    lock = threading.Lock()

    class SnapshotBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]
            self._counts = options.get("unit") == "B"
            self._own_bytes = 0

        def update(self, n: float | None = 1) -> None:
            nonlocal furthest_bytes
            if not self._counts:
                return
            with lock:
                self._own_bytes += int(n or 0)
                more = self._own_bytes - furthest_bytes
                if more > 0:
                    furthest_bytes = self._own_bytes
                    meter.add(more)

    return SnapshotBar
