"""The errors of a download, and the one place where errors of the operating system become ours.

The hub's own errors are mapped in `hub_errors.py`. All of these travel to mlxctl as `to_wire` has them.
"""

from __future__ import annotations

import errno
from pathlib import Path

from mlxd.protocol.errors import (
    EXIT_CAPACITY,
    EXIT_CONFLICT,
    EXIT_DENIED,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_NOT_FOUND,
    MlxdError,
)
from mlxd.protocol.units import show_bytes


class DownloadError(MlxdError, code="download.failed"):
    """A model could not be fetched; nothing half-made is left where models are looked for."""


class Interrupted(DownloadError, code="download.interrupted", exit_code=EXIT_INTERRUPTED):
    """Stopped by SIGINT or SIGTERM."""


class NoNetwork(DownloadError, code="download.no_network"):
    """The package index or the hub cannot be reached."""


class DiskFull(DownloadError, code="download.disk_full", exit_code=EXIT_CAPACITY):
    """There is not enough room for what is fetched or made from it."""


class NotWritable(DownloadError, code="download.not_writable", exit_code=EXIT_DENIED):
    """A folder or file may not be written."""


class NotAFolder(DownloadError, code="download.no_folder", exit_code=EXIT_INVALID):
    """Where a folder is to be there is something else, or nothing can be made."""


class ChecksumMismatch(DownloadError, code="download.checksum"):
    """What came is not what was asked for."""


class HubAnswerInvalid(DownloadError, code="download.hub_invalid"):
    """The hub says what no hub may say."""


class PipMissing(DownloadError, code="download.pip_missing"):
    """This Python has no pip."""


class CannotConvert(DownloadError, code="download.cannot_convert", exit_code=EXIT_INVALID):
    """The file is of a kind that no MLX folder can be made of."""


class NoWeights(DownloadError, code="download.no_weights", exit_code=EXIT_INVALID):
    """The repository holds nothing that MLX could load."""


class FileNotFound(DownloadError, code="download.no_file", exit_code=EXIT_NOT_FOUND):
    """There is no such file to import."""


class NotReadable(DownloadError, code="download.not_readable", exit_code=EXIT_DENIED):
    """A file may not be read."""


class AlreadyThere(DownloadError, code="download.name_taken", exit_code=EXIT_CONFLICT):
    """The name of an import is in use."""


class RepositoryNotFound(DownloadError, code="download.not_found", exit_code=EXIT_NOT_FOUND):
    """The hub has no such repository or revision, or shows it to others only."""


class AccessDenied(DownloadError, code="download.denied", exit_code=EXIT_DENIED):
    """The repository is gated, or the token is refused."""


def disk_full(folder: Path, needed_bytes: int, free_bytes: int) -> DiskFull:
    """Return the error for a folder whose file system has too little room."""
    return DiskFull(
        f"not enough disk space in {folder}: {show_bytes(needed_bytes)} are needed, {show_bytes(free_bytes)} are free",
        hint="free some space, or move everything with MLXD_HOME",
        data={"needed_bytes": needed_bytes, "free_bytes": free_bytes},
    )


def from_os_error(error: OSError) -> DownloadError:
    """Return one of ours for an error of the operating system."""
    where = f" ({error.filename})" if error.filename is not None else ""
    reason = error.strerror if error.strerror is not None else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"the disk is full{where}: {reason}",
            hint="free some space and repeat the command; what was half-made is gone",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NotWritable(f"may not write{where}: {reason}", hint="check the owner and the mode of the folder")
    return DownloadError(f"{reason}{where}")
