"""Parses a large JSON text in short steps: its long strings part by part, and the rest with names in their place. Pure.

The parser holds the interpreter's lock: 20 MiB at once would stop all streams for 20 to 60 ms.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Sequence
from typing import Any

import orjson

_PART_BYTES = 64 * 1024
_ITEMS = 256  # looked at in one step
# The longest character: two escapes, of a surrogate each.
_CHARACTER_BYTES = 12


def parse(raw: bytearray, long_strings: Sequence[tuple[int, int]]) -> Generator[None, None, Any]:
    """Return what `orjson.loads` returns, and yield within a millisecond or two.

    Args:
        raw: the text.
        long_strings: where some of its strings begin and end, without their quotes (`json_size.measure`).

    Raises:
        orjson.JSONDecodeError: as `orjson.loads` does.
    """
    secret = secrets.token_hex(16)  # no string of the text is like it
    texts = {}
    rest, done = bytearray(), 0
    for number, (start, end) in enumerate(long_strings):
        text = yield from _text(raw, start, end)
        if text is None:
            return orjson.loads(raw)  # its error says where
        name = f"{secret}{number}"
        texts[name] = text
        rest += raw[done:start] + name.encode()
        done = end
    rest += raw[done:]
    try:
        value = orjson.loads(rest)
    except orjson.JSONDecodeError:
        return orjson.loads(raw)
    yield from _put_in(value, texts)
    # A long name of a member, or a value that the next member of that name replaces, stays behind.
    return orjson.loads(raw) if texts else value


def _text(raw: bytearray, start: int, end: int) -> Generator[None, None, str | None]:
    """Return a string, or None where it is not valid.

    It is cut anywhere: parts that are valid strings by themselves are what the whole is.
    """
    text = ""
    while start < end:
        stop = min(start + _PART_BYTES, end)
        least = max(start, stop - _CHARACTER_BYTES)
        while (part := _loads_part(bytes(raw[start:stop]))) is None:
            stop -= 1  # it may end within a character
            if stop == least:
                return None
        text += part  # in place, where joining them in the end would copy 80 MB, if one character takes four bytes
        start = stop
        yield
    return text


def _loads_part(part: bytes) -> str | None:
    try:
        text: str = orjson.loads(b'"%b"' % part)
    except orjson.JSONDecodeError:
        return None
    return text


def _put_in(value: Any, texts: dict[str, str]) -> Generator[None, None, None]:
    """Put each of *texts* where its name is a value, and take it out of *texts*."""
    seen, todo = 0, [value]
    while todo:
        inner = todo.pop()
        places = inner if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        for place in places:
            item = inner[place]
            if isinstance(item, str) and item in texts:
                inner[place] = texts.pop(item)
            elif isinstance(item, dict | list):
                todo.append(item)
            seen += 1
            if seen % _ITEMS == 0:
                yield
