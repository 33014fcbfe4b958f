"""Sizes of JSON are those of what a parser would make of it, and what is in strings does not count."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.http import json_size
from mlxd.http.json_size import JsonSize, check, limit_of, measure
from mlxd.protocol.errors import PayloadTooLarge

TEXT = st.text(st.sampled_from('ab"\\[]{},:\n\u00e9\U0001f600'))
VALUES = st.recursive(
    st.none() | st.integers() | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20
)


def size_of(value: Any) -> JsonSize:
    """Return the true size of a parsed value."""
    if isinstance(value, dict):
        own, inner = JsonSize(1 + len(value), max(0, len(value) - 1)), list(value.values())
    elif isinstance(value, list):
        own, inner = JsonSize(1, max(0, len(value) - 1)), value
    else:
        return JsonSize(0, 0)
    sizes = [own, *map(size_of, inner)]
    return JsonSize(sum(size.nodes for size in sizes), sum(size.values for size in sizes))


@pytest.mark.parametrize("piece_bytes", [2, 3, 7, 64])
@pytest.mark.parametrize("dumps", [json.dumps, lambda value: json.dumps(value, ensure_ascii=False, indent=1)])
def test_it_is_what_a_parser_makes(
    monkeypatch: pytest.MonkeyPatch, piece_bytes: int, dumps: Callable[[Any], str]
) -> None:
    """Wherever the pieces end: within a string, an escape or a run of backslashes."""
    monkeypatch.setattr(json_size, "_PIECE_BYTES", piece_bytes)

    @given(VALUES)
    def matches(value: Any) -> None:
        *_, last = measure(dumps(value).encode(), [])
        assert last == size_of(value)

    matches()


def test_long_strings_are_found_wherever_they_end() -> None:
    """Those of the least length and longer ones, and nothing that only looks like the end of one."""
    strings = ["a" * 1023, "b" * 1024, 'c"\\' * 500, "d" * 200_000, "e" * 65_536, ""]
    raw = json.dumps({"f" * 2000: strings, "g": ",".join("h" * 700)}).encode()
    places: list[tuple[int, int]] = []
    list(measure(raw, places))
    found = [json.loads(raw[start - 1 : end + 1]) for start, end in places]
    assert found == ["f" * 2000, *strings[1:5], ",".join("h" * 700)]


def test_a_large_body_is_measured_piece_by_piece() -> None:
    """So that streams go on meanwhile, and what holds too much is known early."""
    raw = b'{"x":[' + b"{}," * 200_000 + b"{}]}"
    sizes = list(measure(raw, []))
    assert len(sizes) == 10
    assert [size.nodes for size in sizes] == sorted({size.nodes for size in sizes})
    assert sizes[-1] == JsonSize(200_004, 200_000) == JsonSize(200_001 + 3, 200_000)


@pytest.mark.parametrize(
    ("more_nodes", "more_values", "words"),
    [(0, 0, None), (1, 0, "260000 objects, lists and members"), (0, 1, "1160000 values")],
)
def test_the_limits_follow_the_number_of_messages(more_nodes: int, more_values: int, words: str | None) -> None:
    """Exactly the limit passes; the error has the number, and the setting that raises it."""
    limit = limit_of(10_000)
    size = JsonSize(limit.nodes + more_nodes, limit.values + more_values)
    if words is None:
        check(size, limit)
        return
    with pytest.raises(PayloadTooLarge, match=words) as refused:
        check(size, limit)
    assert refused.value.hint == "mlxctl config set http.max_messages=N"


@pytest.mark.parametrize("raw", [b"\\", b'{"a":"\\', b'{"a":"\\\\\\'])
def test_a_body_that_ends_within_an_escape_has_an_end(raw: bytes) -> None:
    """The last piece is not kept for a next one."""
    assert len(list(itertools.islice(measure(raw, []), 10))) == 1
