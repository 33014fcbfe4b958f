"""The paths under `MLXD_HOME`, the only environment variable that configures the daemon."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# sun_path is 104 bytes on macOS, with the closing NUL.
MAX_SOCKET_PATH_BYTES = 103


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds everything of one daemon."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """Return `$MLXD_HOME`, or `~/.mlxd` when it is unset or empty."""
        configured = os.environ.get("MLXD_HOME", "")
        root = Path(configured).expanduser() if configured else Path.home() / ".mlxd"
        return cls(Path(os.path.abspath(root)))  # noqa: PTH100  (resolve() would follow symlinks)

    @property
    def config(self) -> Path:
        """The settings file, the one truth."""
        return self.root / "config.toml"

    @property
    def socket(self) -> Path:
        """The control socket, mode 0600."""
        return self.root / "mlxd.sock"

    @property
    def lock(self) -> Path:
        """The single-instance guard."""
        return self.root / "mlxd.lock"

    @property
    def state(self) -> Path:
        """What a daemon leaves for the next one: whether it ended in order, and which loads it died in."""
        return self.root / "state.json"

    @property
    def loading(self) -> Path:
        """Which loads a daemon is at work on, for the next one, should it die."""
        return self.root / "loading.json"

    @property
    def cloud_day(self) -> Path:
        """What the cloud has cost today."""
        return self.root / "cloud-day.json"

    @property
    def audit(self) -> Path:
        """The request log, a SQLite database, mode 0600."""
        return self.root / "audit.db"

    @property
    def history(self) -> Path:
        """The last committed versions of the settings file."""
        return self.root / "history"

    @property
    def models(self) -> Path:
        """Where `mlxctl model pull` puts models."""
        return self.root / "models"

    @property
    def logs(self) -> Path:
        """The folder of `mlxd.log`."""
        return self.root / "logs"

    @property
    def log(self) -> Path:
        """The log of a detached daemon."""
        return self.logs / "mlxd.log"

    @property
    def secrets(self) -> Path:
        """Provider keys in owner-only files."""
        return self.root / "secrets"

    @property
    def api_keys(self) -> Path:
        """The hashes of the keys that clients on TCP need."""
        return self.root / "apikeys.json"

    @property
    def cache(self) -> Path:
        """What may be deleted at any time: downloads, compiled grammars."""
        return self.root / "cache"
