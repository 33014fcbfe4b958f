"""Keeping providers' keys: in the system's keychain where there is one, else in owner-only files. Owns `secrets/`.

A key in the keychain leaves an empty file `NAME.keychain`, since a keychain cannot be asked for what it holds. Nothing
here returns a key, and none stands in a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from mlxd.own_thread import Result, in_own_thread
from mlxd.protocol.errors import CommitFailed, InvalidValue, NotFound

SERVICE = "mlxd"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MARK = ".keychain"
_MOST_CHARACTERS = 8192
# Below it, keyring's own word for a backend that nobody should use unasked: text in a plain file, or none at all.
_LEAST_PRIORITY = 1
# A person may have to answer the keychain's question.
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class KeptKey:
    """One key that is kept, and the reference that leads to it."""

    name: str
    auth: dict[str, str]


class Keys:
    """The keys that were set by name."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made with the first key; its parent is what relative references start from."""
        self._folder = folder

    async def keep(self, name: str, secret: str) -> tuple[KeptKey, Callable[[], Awaitable[None]]]:
        """Keep a key, in place of an earlier one of this name; return it, and what takes it back.

        Raises:
            InvalidValue: the name or the key cannot be one.
            CommitFailed: the file cannot be written, or the keychain does not answer.
        """
        check_name(name)
        check_secret(secret)
        kept, undo = await _waited(lambda: self._keep(name, secret), name)
        return kept, lambda: _waited(undo, name)

    async def kept(self) -> list[KeptKey]:
        """Return the keys that are kept, by name."""
        return await asyncio.to_thread(self._list)

    async def remove(self, name: str) -> KeptKey:
        """Forget a key.

        Raises:
            NotFound: none of this name is kept.
            CommitFailed: the keychain keeps it, or does not answer.
        """
        return await _waited(lambda: self._remove(name), name)

    async def find(self, name: str) -> KeptKey:
        """Return the key of this name; raises as `remove`."""
        found = next((key for key in await self.kept() if key.name == name), None)
        if found is None:
            raise NotFound(f"no key {name!r} is kept", hint="mlxctl key list", param="name")
        return found

    def _keep(self, name: str, secret: str) -> tuple[KeptKey, Callable[[], None]]:
        before = self._read(name)
        if _write_keychain(name, secret):
            self._write(f"{name}{_MARK}", b"")
            self._unlink(name)
            kept = KeptKey(name, _keychain_reference(name))
        else:
            self._write(name, f"{secret}\n".encode())
            try:
                self._forget_keychain(name)
            except CommitFailed:
                self._unlink(name)  # one key of a name, not two
                raise
            kept = KeptKey(name, self._file_reference(name))

        def take_back() -> None:
            if before is None:
                self._remove(name)
            else:
                self._keep(name, before)

        return kept, take_back

    def _read(self, name: str) -> str | None:
        """Return the key that is kept under this name now."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / name).read_text().strip()
        return _read_keychain(name) if (self._folder / f"{name}{_MARK}").exists() else None

    def _list(self) -> list[KeptKey]:
        try:
            names = sorted(path.name for path in self._folder.iterdir())
        except FileNotFoundError:
            return []
        keys = []
        for name in names:
            own = name.removesuffix(_MARK)
            if _NAME.fullmatch(own):
                auth = _keychain_reference(own) if name.endswith(_MARK) else self._file_reference(own)
                keys.append(KeptKey(own, auth))
        return keys

    def _remove(self, name: str) -> KeptKey:
        for key in self._list():
            if key.name == name:
                self._unlink(name)
                self._forget_keychain(name)
                return key
        raise NotFound(f"no key {name!r} is kept", hint="mlxctl key list", param="name")

    def _forget_keychain(self, name: str) -> None:
        if (self._folder / f"{name}{_MARK}").exists():
            _delete_keychain(name)
            self._unlink(f"{name}{_MARK}")

    def _file_reference(self, name: str) -> dict[str, str]:
        return {"file": f"{self._folder.name}/{name}"}

    def _write(self, name: str, data: bytes) -> None:
        """Write a file that only its owner may read, whole or not at all."""
        temporary = self._folder / f".{name}.tmp"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor has no path)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(self._folder / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise CommitFailed(f"the key cannot be kept in {self._folder}: {error.strerror}") from None

    def _unlink(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)


async def _waited(work: Callable[[], Result], name: str) -> Result:
    """Return what *work* does with a keychain, which may ask a person or never answer."""
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await in_own_thread(work, "mlxd-secret")
    except TimeoutError:
        raise CommitFailed(
            f"the keychain did not answer within {_LIMIT_S:g} s; whether the key {name!r} is kept is not known",
            hint="mlxctl key list",
        ) from None


def check_name(name: str) -> None:
    """Refuse what is no name of a key.

    Raises:
        InvalidValue: without what was given: it may be the key itself.
    """
    if not _NAME.fullmatch(name) or name.endswith(_MARK):
        raise InvalidValue(
            "a key's name is 1 to 64 letters, digits and . _ -, such as the provider's name; it is not the key",
            param="name",
            hint="mlxctl key set NAME",
        )


def check_secret(secret: str) -> None:
    """Refuse what no header may carry; the value is not repeated.

    Raises:
        InvalidValue: it cannot be a key.
    """
    if not secret.strip() or len(secret) > _MOST_CHARACTERS or not secret.isascii() or not secret.isprintable():
        raise InvalidValue(
            f"a key is 1 to {_MOST_CHARACTERS} printable ASCII characters in one line", param="secret", hint=None
        )


def _keychain_reference(name: str) -> dict[str, str]:
    return {"keychain": f"{SERVICE}/{name}"}


def _write_keychain(name: str, secret: str) -> bool:
    """Put a key into the keychain; False where there is none, or it is locked."""
    import keyring
    import keyring.errors

    if keyring.get_keyring().priority < _LEAST_PRIORITY:
        return False
    try:
        keyring.set_password(SERVICE, name, secret)
        return keyring.get_password(SERVICE, name) == secret
    except keyring.errors.KeyringError:
        return False


def _read_keychain(name: str) -> str | None:
    import keyring
    import keyring.errors

    with contextlib.suppress(keyring.errors.KeyringError):
        return keyring.get_password(SERVICE, name)
    return None


def _delete_keychain(name: str) -> None:
    """Delete a key that may be gone already.

    Raises:
        CommitFailed: it is still there, as far as anybody knows.
    """
    import keyring
    import keyring.errors

    try:
        try:
            keyring.delete_password(SERVICE, name)
        except keyring.errors.PasswordDeleteError:
            if keyring.get_password(SERVICE, name) is not None:
                raise
    except keyring.errors.KeyringError as error:
        raise CommitFailed(
            f"the key {name!r} cannot be deleted from the keychain: {type(error).__name__}",
            hint="unlock the keychain and try again",
        ) from None
