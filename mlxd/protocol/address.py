"""The kinds of setting that say where something is: the server's own address, a provider's, a proxy's, a key's."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Mapping
from functools import partial
from typing import Any

from mlxd.protocol.kind import Kind, reject

_HOST = "an IP address, or localhost"
_URL = "an address such as https://host/v1"
_PROXY = "an address such as http://host:3128, or 'none'"
_REFERENCE = 'a reference such as { env = "NAME" }, { file = "PATH" } or { keychain = "SERVICE/NAME" }'
_KEYCHAIN = re.compile(r"[\x21-\x2e\x30-\x7e]{1,128}/[\x21-\x7e]{1,128}")


def _read_host(value: Any, _: int) -> str:
    """Return the address in its usual form."""
    if value == "localhost":
        return str(value)
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise reject(value, _HOST) from None


def _read_url(value: Any, _: int, accepted: str = _URL, *, is_proxy: bool = False) -> str:
    """Return the address without a closing slash."""
    if not isinstance(value, str):
        raise reject(value, accepted)
    parts = urllib.parse.urlsplit(value)
    if "@" in parts.netloc or parts.query or parts.fragment:
        # The value is not repeated: it may hold a key.
        raise ValueError(
            'an address may not hold credentials, a query or a fragment; the key goes into auth = { env = "NAME" }'
        )
    is_text = value.isprintable() and " " not in value
    if parts.scheme not in {"http", "https"} or not parts.hostname or not _is_host(parts.hostname) or not is_text:
        raise reject(value, accepted)
    try:
        parts.port  # noqa: B018  (reading it is the check)
    except ValueError as error:
        raise ValueError(f"{value!r} has no valid port: {error}") from None
    if parts.scheme == "http" and not is_proxy and not _is_near(parts.hostname):
        raise ValueError(
            f"{value!r} would send the key and the prompts unencrypted; use https, or a loopback or private address"
        )
    return value.rstrip("/")


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


def _read_secret(value: Any, _: int) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or len(value) != 1 or not set(value) <= {"env", "file", "keychain"}:
        raise ValueError("it must be " + _REFERENCE)
    # A wrong value is not repeated: somebody may have put the key itself there.
    ((kind, place),) = value.items()
    text = place if isinstance(place, str) else ""
    if kind == "env" and not (text.isidentifier() and text.isascii()):
        raise ValueError(
            'auth.env must be the NAME of an environment variable (letters, digits and "_"), not the key itself'
        )
    if kind == "file" and not ("/" in text or text.startswith("~")):
        raise ValueError("auth.file must be the PATH of a file, with a slash in it, not the key itself")
    if kind == "keychain" and not _KEYCHAIN.fullmatch(text):
        raise ValueError("auth.keychain must be SERVICE/NAME, not the key itself")
    return {kind: text}


def _place(kind: str, pattern: str) -> dict[str, Any]:
    properties = {kind: {"type": "string", "pattern": pattern}}
    return {"type": "object", "properties": properties, "required": [kind], "additionalProperties": False}


# An IP address of this machine, or localhost; a name would be looked up, and mean something else tomorrow.
HOST = Kind(
    _HOST,
    ({"const": "localhost"}, {"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}),
    _read_host,
)
_ADDRESS = {"type": "string", "format": "uri", "pattern": "^https?://"}
# An http(s) address without credentials, query or fragment; plain http only to loopback and private networks.
URL = Kind(_URL, (_ADDRESS,), _read_url)
# A proxy may be reached by plain http anywhere: it passes https on unread.
PROXY = Kind(
    _PROXY,
    (_ADDRESS, {"const": "none"}),
    partial(_read_url, accepted=_PROXY, is_proxy=True),
    words={"none": None},
)
# Where a secret is kept; never the secret itself.
SECRET = Kind(
    _REFERENCE,
    (
        {
            "oneOf": [
                _place("env", "^[A-Za-z_][A-Za-z0-9_]*$"),
                _place("file", "[/~]"),
                _place("keychain", "^[^/]+/.+$"),
            ]
        },
    ),
    _read_secret,
)
