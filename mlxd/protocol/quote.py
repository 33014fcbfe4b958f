"""Quote values in messages. A message goes into logs, and what a client sent may be a prompt."""

from __future__ import annotations

import json
import re

from mlxd.protocol.units import count

# What people write for one of a few words, and no sentence is.
_WORD = re.compile(r"[A-Za-z0-9_.:/+-]{1,40}", re.ASCII)


def as_json(value: object) -> str:
    """Return a value of ours."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def shown(value: object) -> str:
    """Return what may be shown of a client's value: a number or a word, and of anything else what it is."""
    match value:
        case None | bool() | int() | float() | "" | []:
            return json.dumps(value)
        case str() if _WORD.fullmatch(value):
            return json.dumps(value)
        case str():
            return f"a text of {count(len(value), 'character')}"
        case list():
            return f"a list of {count(len(value), 'item')}"
        case _:
            return "an object"


def kind_word(kind: object) -> str:
    """Return the kind that a client gave to a part of its body; "type" where that is no word and may be a prompt."""
    return kind if isinstance(kind, str) and _WORD.fullmatch(kind) else "type"
