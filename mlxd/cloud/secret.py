"""Reading a provider's key through its reference. The value is never logged, and stands in no message."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from mlxd.own_thread import in_own_thread
from mlxd.protocol.errors import SecretMissing

# A key is a line; what is longer is another file.
_MAX_FILE_BYTES = 16_384
# A keychain may ask a person, and a disk may be gone.
_LIMIT_S = 10.0
# Of a look at what is wrong, which nobody waits long for.
_LOOK_LIMIT_S = 1.0


class Secrets:
    """Where keys are looked up, at every request, so that a changed one counts at once."""

    def __init__(self, environ: Mapping[str, str], home: Path, limit_s: float = _LIMIT_S) -> None:
        """Take the daemon's environment, the folder that a relative path lies in, and how long a key may take."""
        self._environ = environ
        self._home = home
        self._limit_s = limit_s
        # A read that hangs is waited for by all who want the same key: it holds one thread, not one for each request.
        self._reading: dict[tuple[str, str, str], asyncio.Future[str]] = {}

    async def read(self, provider_id: str, auth: Mapping[str, str] | None, limit_s: float | None = None) -> str | None:
        """Return the key, or None for a provider without one.

        A file and a keychain are read on a thread of their own, for *limit_s* seconds at most.

        Raises:
            SecretMissing: there is none where the reference leads, others may read it, no header may carry it, or it
                does not come in time.
        """
        if auth is None:
            return None
        ((kind, place),) = auth.items()
        if kind == "env":
            return self._read_environment(provider_id, place)
        found = (provider_id, kind, place)
        reading = self._reading.get(found)
        if reading is None:
            reading = self._reading[found] = in_own_thread(lambda: self._read_slow(*found), "mlxd-secret")
            reading.add_done_callback(lambda _: self._reading.pop(found, None))
        within_s = self._limit_s if limit_s is None else limit_s
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.shield(reading)
        except TimeoutError:
            where = "the keychain" if kind == "keychain" else place
            raise SecretMissing(
                f"the key of provider {provider_id!r} is not there: {where} did not answer within {within_s:g} s",
                hint=f"mlxctl cloud provider show {provider_id}",
            ) from None

    async def problem(
        self, provider_id: str, auth: Mapping[str, str] | None, limit_s: float = _LOOK_LIMIT_S
    ) -> str | None:
        """Return why the key cannot be had, in words; None where it can."""
        try:
            await self.read(provider_id, auth, limit_s)
        except SecretMissing as error:
            return error.message
        return None

    def environment_problem(self, provider_id: str, auth: Mapping[str, str] | None) -> str | None:
        """Return the same of a key in the environment, without waiting; None also for a key that is elsewhere."""
        try:
            if auth is not None and "env" in auth:
                self._read_environment(provider_id, auth["env"])
        except SecretMissing as error:
            return error.message
        return None

    def _read_environment(self, provider_id: str, name: str) -> str:
        missing = f"{name} is not set in the environment of mlxd"
        secret = self._environ.get(name, "").strip()
        return _checked(provider_id, name, secret, missing, f"set {name} and run mlxctl restart")

    def _read_slow(self, provider_id: str, kind: str, place: str) -> str:
        hint = f"mlxctl key set {provider_id} --provider {provider_id}"
        if kind == "file":
            return _checked(provider_id, place, self._read_file(provider_id, place), f"{place} is empty", hint)
        missing = f"the keychain has no entry {place}"
        return _checked(provider_id, place, _read_keychain(provider_id, place), missing, hint)

    def _read_file(self, provider_id: str, place: str) -> str:
        path = self._home / Path(place).expanduser()
        try:
            # Without O_NONBLOCK a pipe in the file's place would have us wait for a writer.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                found = os.fstat(file.fileno())
                mode = stat.S_IMODE(found.st_mode)
                if not stat.S_ISREG(found.st_mode):
                    raise SecretMissing(
                        f"the key of provider {provider_id!r} cannot be read from {path}: it is no regular file",
                        hint=f"mlxctl key set {provider_id} --provider {provider_id}",
                    )
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


def _checked(provider_id: str, place: str, secret: str, missing: str, hint: str) -> str:
    """Return a key that a header can carry."""
    if not secret:
        raise SecretMissing(f"the key of provider {provider_id!r} is missing: {missing}", hint=hint)
    if not secret.isascii() or not secret.isprintable():
        raise SecretMissing(f"the key of provider {provider_id!r} in {place} holds characters that no header may carry")
    return secret


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
