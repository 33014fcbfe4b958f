"""A change of settings is refused. The whole tree is drawn in the package."""

from __future__ import annotations

from mlxd.protocol.errors.base import EXIT_CAPACITY, EXIT_CONFLICT, EXIT_INVALID, EXIT_OTHER, MlxdError


class SettingsError(MlxdError):
    """A change of settings is refused; the file and the live settings are as before."""

    code = "settings.refused"
    http_status = 400
    openai_type = "invalid_request_error"
    exit_code = EXIT_INVALID


class UnknownSetting(SettingsError):
    """No setting has this key; the message names the nearest."""

    code = "settings.unknown"


class InvalidValue(SettingsError):
    """The value is not of the kind, or outside the bounds, that the message states."""

    code = "settings.invalid_value"


class FileInvalid(SettingsError):
    """The file on disk does not parse or validate; names file:line:col."""

    code = "config.file_invalid"
    http_status = 503
    openai_type = "server_error"


class FileMissing(FileInvalid):
    """The file's folder was moved away or deleted: a disk that is gone, not an edit."""

    code = "config.file_missing"


class Conflict(SettingsError):
    """The settings moved on since the caller looked (`if_gen`)."""

    code = "config.conflict"
    exit_code = EXIT_CONFLICT

    @classmethod
    def of_generation(cls, generation: int, expected: int) -> Conflict:
        """Return the error of a caller that *expected* another generation than there is."""
        return cls(
            f"the settings are at generation {generation}, not {expected}",
            hint=f"look at what changed (mlxctl config history), then --if-generation {generation}",
            data={"gen": generation},
        )


class InsufficientCapacity(SettingsError):
    """The new limit is below what pins or the preload list need."""

    code = "pool.insufficient_capacity"
    exit_code = EXIT_CAPACITY


class CommitFailed(SettingsError):
    """The file could not be written (disk full, permission, busy); nothing changed."""

    code = "config.commit_failed"
    exit_code = EXIT_OTHER
