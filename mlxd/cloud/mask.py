"""Finding a provider's key in what an upstream repeats, however JSON writes it. Pure."""

from __future__ import annotations

import json

_MASK = b"[the provider's key]"


def holds(data: bytes, secret: str | None) -> bool:
    """Tell whether *data* repeats the key."""
    return any(form in data for form in _forms(secret))


def masked(data: bytes, secret: str | None) -> bytes:
    """Return *data* without the key."""
    for form in _forms(secret):
        data = data.replace(form, _MASK)
    return data


def _forms(secret: str | None) -> tuple[bytes, ...]:
    """Return the key as it is, and as a string of JSON may hold it."""
    if not secret:
        return ()
    escaped = json.dumps(secret)[1:-1]
    return tuple({form.encode() for text in (secret, escaped) for form in (text, text.replace("/", "\\/"))})
