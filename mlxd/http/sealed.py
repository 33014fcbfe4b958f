"""Seal a model's thought in an opaque text, for clients that send back nothing else of it.

It is not encrypted, only packed: the words are the client's own to see.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "mlxd1."


def sealed(thought: str) -> str:
    """Return *thought* as an opaque text."""
    return _MARK + base64.urlsafe_b64encode(thought.encode("utf-8", "replace")).decode()


def opened(text: str) -> str | None:
    """Return the thought of what `sealed` made; None of what another server did."""
    if not text.startswith(_MARK):
        return None
    try:
        return base64.b64decode(text.removeprefix(_MARK), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
