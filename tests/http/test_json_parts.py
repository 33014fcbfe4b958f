"""A large JSON text that is parsed in parts says what it says as a whole."""

from __future__ import annotations

import json
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlxd.http import json_parts, json_size

# Escapes of all kinds, whole and cut, characters of one to four bytes, and what is none.
PIECES = (
    *(
        b'"',
        b"\\",
        b'\\"',
        b"\\\\",
        b"\\n",
        b"\\u0041",
        b"\\u4e2d",
        b"\\ud83d\\ude00",
        b"\\ud83d",
        b"\\ude00",
        b"\\u4e",
    ),
    *(b"a", b" ", b"\n", b"\0", b"{", b"}", b"[", b"]", b":", b",", b"1", b"null"),
    *(text.encode() for text in ("\u00e9", "\u4e2d", "\U0001f600")),
    *(b"\xff", b"\xf0\x9f", b"\xed\xa0\xbd"),
)
CHARACTERS = 'ab"\\/\n\t{}[]:,\u00e9\u4e2d\U0001f600'
TEXTS = st.text(st.sampled_from(CHARACTERS), max_size=40)
VALUES = st.recursive(
    st.none() | st.integers(0, 9) | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let texts of a few bytes be large ones."""
    monkeypatch.setattr(json_size, "_PIECE_BYTES", 7)
    monkeypatch.setattr(json_size, "_LONG_BYTES", 3)
    monkeypatch.setattr(json_parts, "_PART_BYTES", 13)
    monkeypatch.setattr(json_parts, "_ITEMS", 2)


def steps_of(raw: bytes) -> Generator[None, None, Any]:
    """Measure and parse."""
    long_strings: list[tuple[int, int]] = []
    for _ in json_size.measure(raw, long_strings):
        yield
    return (yield from json_parts.parse(bytearray(raw), long_strings))


def parse(raw: bytes) -> Any:
    """Return the value, or the error in words."""
    steps = steps_of(raw)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value
    except orjson.JSONDecodeError as error:
        return str(error)


def expected(raw: bytes) -> Any:
    """Return what the parser itself makes of it."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return str(error)


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_any_value_is_the_same(value: Any, indent: int | None, ascii_only: bool) -> None:
    """With its members in their order, wherever the parts end."""
    raw = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert json.dumps(parse(raw)) == json.dumps(value)


@given(st.lists(st.sampled_from(PIECES)).map(b"".join), st.sampled_from([b"%s", b'"%s"', b'{"a":"%s"}', b'["%s",1]']))
@example(b"\\\\ud83d\\ude00", b'"%s"')
@example(b'abcd","a":"efgh', b'{"a":"%s"}')  # a member that another one replaces
@example(b'abcd":"efgh', b'{"%s"}')  # a long name
def test_anything_has_the_same_value_or_error(inside: bytes, around: bytes) -> None:
    """Escapes, surrogates, bytes that are no UTF-8, and texts that end too early."""
    raw = around % inside
    assert parse(raw) == expected(raw)


def test_a_long_string_is_never_parsed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither with the rest nor by itself: the parser lets nobody else run."""
    lengths = []

    def loads(raw: bytes) -> Any:
        lengths.append(len(raw))
        return orjson.loads(raw)

    monkeypatch.setattr(json_parts, "orjson", SimpleNamespace(loads=loads, JSONDecodeError=orjson.JSONDecodeError))
    value = {"a": [{"b": "\U0001f600" * 100}, {"b": "a" * 500}], "b": ["c" * 300]}
    assert parse(json.dumps(value).encode()) == value
    assert max(lengths) < 200
