"""What can go wrong in a download, and the one place where errors of the operating system become ours.

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


class DownloadError(MlxdError):
    """A model could not be fetched; nothing half-made is left where models are looked for."""

    code = "download.failed"


class Interrupted(DownloadError):
    """Stopped by SIGINT or SIGTERM."""

    code = "download.interrupted"
    exit_code = EXIT_INTERRUPTED


class NoNetwork(DownloadError):
    """The package index or the hub cannot be reached."""

    code = "download.no_network"


class DiskFull(DownloadError):
    """There is not enough room for what is fetched or made from it."""

    code = "download.disk_full"
    exit_code = EXIT_CAPACITY


class NotWritable(DownloadError):
    """A folder or file may not be written."""

    code = "download.not_writable"
    exit_code = EXIT_DENIED


class NotAFolder(DownloadError):
    """Where a folder is to be there is something else, or nothing can be made."""

    code = "download.no_folder"
    exit_code = EXIT_INVALID


class ChecksumMismatch(DownloadError):
    """What came is not what was asked for."""

    code = "download.checksum"


class HubAnswerInvalid(DownloadError):
    """The hub says what no hub may say."""

    code = "download.hub_invalid"


class PipMissing(DownloadError):
    """This Python has no pip."""

    code = "download.pip_missing"


class CannotConvert(DownloadError):
    """The file is of a kind that no MLX folder can be made of."""

    code = "download.cannot_convert"
    exit_code = EXIT_INVALID


class NoWeights(DownloadError):
    """The repository holds nothing that MLX could load."""

    code = "download.no_weights"
    exit_code = EXIT_INVALID


class FileNotFound(DownloadError):
    """There is no such file to import."""

    code = "download.no_file"
    exit_code = EXIT_NOT_FOUND


class NotReadable(DownloadError):
    """A file may not be read."""

    code = "download.not_readable"
    exit_code = EXIT_DENIED


class AlreadyThere(DownloadError):
    """The name of an import is in use."""

    code = "download.name_taken"
    exit_code = EXIT_CONFLICT


class RepositoryNotFound(DownloadError):
    """The hub has no such repository or revision, or shows it to others only."""

    code = "download.not_found"
    exit_code = EXIT_NOT_FOUND


class AccessDenied(DownloadError):
    """The repository is gated, or the token is refused."""

    code = "download.denied"
    exit_code = EXIT_DENIED


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
