"""Reading a provider's key through its reference. The value is never logged, and stands in no message."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Mapping
from pathlib import Path

from mlxd.protocol.errors import SecretMissing

# A key is a line; what is longer is another file.
_MAX_FILE_BYTES = 16_384


class Secrets:
    """Where keys are looked up, at every request, so that a changed one counts at once."""

    def __init__(self, environ: Mapping[str, str], home: Path) -> None:
        """Take the daemon's environment, and the folder that a relative path lies in."""
        self._environ = environ
        self._home = home

    async def read(self, provider_id: str, auth: Mapping[str, str] | None) -> str | None:
        """Return the key, or None for a provider without one. A file and a keychain are read on a worker thread.

        Raises:
            SecretMissing: there is none where the reference leads, others may read it, or no header may carry it.
        """
        if auth is None:
            return None
        if "env" in auth:
            return self.read_now(provider_id, auth)
        return await asyncio.to_thread(self.read_now, provider_id, auth)

    async def problem(self, provider_id: str, auth: Mapping[str, str] | None) -> str | None:
        """Return why the key cannot be had, in words; None where it can."""
        try:
            await self.read(provider_id, auth)
        except SecretMissing as error:
            return error.message
        return None

    def read_now(self, provider_id: str, auth: Mapping[str, str] | None) -> str | None:
        """Return the key; raises as `read`. May wait for a disk or a keychain."""
        if auth is None:
            return None
        ((kind, place),) = auth.items()
        if kind == "env":
            secret = self._environ.get(place, "").strip()
            missing = f"{place} is not set in the environment of mlxd"
            hint = f"set {place} and run mlxctl restart"
        elif kind == "file":
            secret = self._read_file(provider_id, place)
            missing, hint = f"{place} is empty", f"mlxctl key set {provider_id} --provider {provider_id}"
        else:
            secret = _read_keychain(provider_id, place)
            missing = f"the keychain has no entry {place}"
            hint = f"mlxctl key set {provider_id} --provider {provider_id}"
        if not secret:
            raise SecretMissing(f"the key of provider {provider_id!r} is missing: {missing}", hint=hint)
        if not secret.isascii() or not secret.isprintable():
            raise SecretMissing(
                f"the key of provider {provider_id!r} in {place} holds characters that no header may carry"
            )
        return secret

    def _read_file(self, provider_id: str, place: str) -> str:
        path = self._home / Path(place).expanduser()
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(path.stat().st_mode)
                if mode & 0o077:
                    raise SecretMissing(
                        f"the key of provider {provider_id!r} is not used: others may read {path} (mode {mode:04o})",
                        hint=f"chmod 600 {path}",
                    )
                return file.read(_MAX_FILE_BYTES).decode(errors="replace").strip()
        except OSError as error:
            raise SecretMissing(
                f"the key of provider {provider_id!r} cannot be read from {path}: {error.strerror}",
                hint="mlxctl cloud provider list",
            ) from None


def _read_keychain(provider_id: str, place: str) -> str:
    import keyring
    import keyring.errors

    service, _, name = place.partition("/")
    try:
        return keyring.get_password(service, name) or ""
    except keyring.errors.KeyringError as error:
        # From a session without a screen macOS answers -25308.
        raise SecretMissing(
            f"the key of provider {provider_id!r} cannot be read from the keychain: {type(error).__name__}",
            hint="log in on the screen once, or keep the key in a file of mode 0600",
        ) from None
