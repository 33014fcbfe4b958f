"""Kinds that say where a cloud provider is and where its key is kept."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.protocol.kind.base import Machine, reject


@dataclass(frozen=True, slots=True)
class URL:
    """An http(s) address without credentials, query or fragment; plain http only to loopback and private networks.

    A proxy may be reached by plain http anywhere: it passes https on unread. `none` is the word for no value.
    """

    is_proxy: bool = False
    none: str | None = None

    def parse(self, value: Any, machine: Machine) -> str | None:  # noqa: ARG002
        """Return the address without a closing slash."""
        if self.none is not None and value == self.none:
            return None
        if not isinstance(value, str):
            raise reject(value, self.describe())
        parts = urllib.parse.urlsplit(value)
        if "@" in parts.netloc or parts.query or parts.fragment:
            # The value is not repeated: it may hold a key.
            msg = (
                'an address may not hold credentials, a query or a fragment; the key goes into auth = { env = "NAME" }'
            )
            raise ValueError(msg)
        is_text = value.isprintable() and " " not in value
        if parts.scheme not in {"http", "https"} or not parts.hostname or not _is_host(parts.hostname) or not is_text:
            raise reject(value, self.describe())
        try:
            parts.port  # noqa: B018  (reading it is the check)
        except ValueError as error:
            msg = f"{value!r} has no valid port: {error}"
            raise ValueError(msg) from None
        if parts.scheme == "http" and not self.is_proxy and not _is_near(parts.hostname):
            msg = (
                f"{value!r} would send the key and the prompts unencrypted; use https, or a loopback or private address"
            )
            raise ValueError(msg)
        return value.rstrip("/")

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the kind in words."""
        words = "an address such as " + ("http://host:3128" if self.is_proxy else "https://host/v1")
        return words if self.none is None else f"{words}, or {self.none!r}"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        address = {"type": "string", "format": "uri", "pattern": "^https?://"}
        return address if self.none is None else {"anyOf": [address, {"const": self.none}]}


def _is_host(hostname: str) -> bool:
    """Tell whether a name can be looked up; the `…` of an example that was copied cannot."""
    try:
        return all(hostname.encode("idna").removesuffix(b".").split(b"."))
    except UnicodeError:
        return False


def _is_near(hostname: str) -> bool:
    """Tell whether plain http to the host stays on this machine or its network."""
    if hostname == "localhost" or hostname.endswith(".local"):
        return True
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return address.is_loopback or address.is_private


_KEYCHAIN = re.compile(r"[\x21-\x2e\x30-\x7e]{1,128}/[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class SecretReference:
    """Where a secret is kept: `{ env = "NAME" }`, a file or a keychain's entry; never the secret itself."""

    def parse(self, value: Any, machine: Machine) -> Mapping[str, str] | None:  # noqa: ARG002
        """Return the reference."""
        if value is None:
            return None
        if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= {"env", "file", "keychain"}:
            raise ValueError("it must be " + self.describe())
        # A wrong value is not repeated: somebody may have put the key itself there.
        ((kind, place),) = value.items()
        if kind == "env" and not (isinstance(place, str) and place.isidentifier() and place.isascii()):
            msg = 'auth.env must be the NAME of an environment variable (letters, digits and "_"), not the key itself'
            raise ValueError(msg)
        if kind == "file" and not (isinstance(place, str) and ("/" in place or place.startswith("~"))):
            msg = "auth.file must be the PATH of a file, with a slash in it, not the key itself"
            raise ValueError(msg)
        if kind == "keychain" and not (isinstance(place, str) and _KEYCHAIN.fullmatch(place)):
            msg = "auth.keychain must be SERVICE/NAME, not the key itself"
            raise ValueError(msg)
        return {kind: place}

    def to_toml(self, value: Any) -> Any:
        """Keep the reference."""
        return value

    def describe(self) -> str:
        """Return the kind in words."""
        return 'a reference such as { env = "NAME" }, { file = "PATH" } or { keychain = "SERVICE/NAME" }'

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        name = {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}
        path, entry = {"type": "string", "pattern": "[/~]"}, {"type": "string", "pattern": "^[^/]+/.+$"}
        kinds = {"env": name, "file": path, "keychain": entry}
        return {
            "oneOf": [
                {"type": "object", "properties": {kind: place}, "required": [kind], "additionalProperties": False}
                for kind, place in kinds.items()
            ]
        }
