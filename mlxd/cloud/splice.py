"""Changing one member of a JSON body and not one byte beside it."""

from __future__ import annotations

import re
from typing import Any

import orjson

from mlxd.protocol.errors import InvalidRequest

# Possessive, so that a string of megabytes keeps no stack of places to come back to.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_HOLDERS = (b'"message"', b'"response"')
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


def rename_model(raw: bytes, model: str) -> bytes:
    """Return *raw*, valid JSON of an answer or an event, with the name of the model that answers replaced by *model*.

    It stands at the top, or in the `message` or the `response` that an event holds.
    """
    depth = 0
    is_inside = False  # of one of those
    position = 0
    while (token := _TOKEN.search(raw, position)) is not None:
        position = token.end()
        if token[0] in b"{[":
            depth += 1
        elif token[0] in b"}]":
            depth -= 1
            is_inside = is_inside and depth > 1
        elif depth <= 2 and (colon := _COLON.match(raw, position)) is not None:
            start = colon.end()
            if depth == 1:
                is_inside = token[0] in _HOLDERS and raw[start : start + 1] == b"{"
            if token[0] == b'"model"' and (depth == 1 or is_inside):
                value = _TOKEN.match(raw, start)
                if value is None or raw[start] != ord('"'):
                    return raw  # null, where it is nobody's
                return raw[:start] + orjson.dumps(model) + raw[value.end() :]
    return raw


def set_member(raw: bytes, name: str, value: Any) -> bytes:
    """Return *raw*, valid JSON of an object, with *name* set to *value* at its beginning; a null of that name goes.

    Raises:
        InvalidRequest: *name* stands there more than once.
    """
    spans = [span for key, span in _members(raw) if key == name]
    if len(spans) > 1:
        raise InvalidRequest(f"{name} must be given at most once", param=name)
    if spans:  # null or an object: what it holds is in *value*
        start = spans[0][0]
        end = _end_of_value(raw, start)
        return raw[:start] + orjson.dumps(value) + raw[end:]
    return add_member(raw, name, value)


def add_member(raw: bytes, name: str, value: Any) -> bytes:
    """Return *raw*, valid JSON of an object that has no member *name*, with that set to *value* at its beginning."""
    brace = raw.index(b"{") + 1
    comma = b"" if raw[brace:].lstrip().startswith(b"}") else b","
    return raw[:brace] + orjson.dumps(name) + b":" + orjson.dumps(value) + comma + raw[brace:]


def _end_of_value(raw: bytes, start: int) -> int:
    """Return where the value ends that begins at *start* and is null or an object."""
    if raw[start : start + 4] == b"null":
        return start + 4
    depth = 0
    for token in _TOKEN.finditer(raw, start):
        depth += {b"{": 1, b"}": -1, b"[": 1, b"]": -1}.get(token[0], 0)
        if depth == 0:
            return token.end()
    raise InvalidRequest("the body is not valid JSON")


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
