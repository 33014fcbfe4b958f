"""A keychain in memory, which can be locked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keyring
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked, PasswordDeleteError


class MemoryKeychain(KeyringBackend):
    """What a system's keychain does, as far as `keyring` knows."""

    priority = -1  # not one that is found by itself

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: dict[tuple[str, str], str] = {}
        self.is_locked = False

    def get_password(self, service: str, username: str) -> str | None:
        self._open()
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._open()
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._open()
        if self.entries.pop((service, username), None) is None:
            raise PasswordDeleteError("not there")

    def _open(self) -> None:
        if self.is_locked:
            raise KeyringLocked("-25308")


@contextmanager
def memory_keychain() -> Iterator[MemoryKeychain]:
    """Have `keyring` use a keychain in memory until the end of the context."""
    before = keyring.get_keyring()
    keychain = MemoryKeychain()
    keychain.priority = 1
    keyring.set_keyring(keychain)
    try:
        yield keychain
    finally:
        keyring.set_keyring(before)
