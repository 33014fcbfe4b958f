"""Changing the model's name in a JSON body and not one byte beside it."""

from __future__ import annotations

import re

import orjson

from mlxd.protocol.errors import InvalidRequest

# Possessive, so that a string of megabytes keeps no stack of places to come back to.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*")


def replace_model(raw: bytes, model: str) -> bytes:
    """Return *raw*, valid JSON of an object whose `model` is a string, with that string replaced.

    Raises:
        InvalidRequest: `model` stands there more than once: we and the upstream might not read the same one.
    """
    spans = [span for key, span in _members(raw) if key == "model"]
    if len(spans) != 1:
        raise InvalidRequest("model must be given exactly once", param="model")
    start, end = spans[0]
    return raw[:start] + orjson.dumps(model) + raw[end:]


def _members(raw: bytes) -> list[tuple[str, tuple[int, int]]]:
    """Return (key, span of the string after the colon) of the members at the top; an empty span for other values."""
    found = []
    depth = 0
    position = 0
    while (token := _TOKEN.search(raw, position)) is not None:
        position = token.end()
        if token[0] in b"{[":
            depth += 1
        elif token[0] in b"}]":
            depth -= 1
        elif depth == 1 and (colon := _COLON.match(raw, position)) is not None:
            value = _TOKEN.match(raw, colon.end())
            is_string = value is not None and raw[colon.end()] == ord('"')
            position = value.end() if value is not None and is_string else colon.end()
            found.append((orjson.loads(token[0]), (colon.end(), position)))
    return found
