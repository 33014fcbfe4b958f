"""The settings table: keys, decoding, lookups."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.protocol.key import format_path, parse_path
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import SettingProblem, decode, find_row, lookup, rows

USABLE_BYTES = 32 * 10**9
PARTS = st.text(min_size=1, max_size=12) | st.sampled_from(
    ['a"b', "a\\", '\\"', "a.b", "org/name", ".", '"', "qwen2.5"]
)


@given(st.lists(PARTS, min_size=1, max_size=4).map(tuple))
def test_paths_survive_their_key(path: tuple[str, ...]) -> None:
    """Any ids, with dots, quotes and backslashes in them, can be written as a key and read back."""
    assert path == parse_path(format_path(path))


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("pool.memory", ("pool", "memory")),
        ('models."org/name-2.5".pin', ("models", "org/name-2.5", "pin")),
        ('"pool".memory', ("pool", "memory")),
        ("cloud.rules.big-1.to", ("cloud", "rules", "big-1", "to")),
    ],
)
def test_keys_as_people_write_them(key: str, path: tuple[str, ...]) -> None:
    """Quotes are needed only where an id has dots."""
    assert path == parse_path(key)


@pytest.mark.parametrize(
    "key", ["", ".", "pool.", ".memory", "pool..memory", 'models."a', 'models."a"b', '""', 'models."".pin']
)
def test_broken_keys_are_refused(key: str) -> None:
    """Empty parts and open quotes are no keys."""
    with pytest.raises(ValueError, match=r"open quote|not a dotted key"):
        parse_path(key)


def test_an_empty_document_has_every_default() -> None:
    """Without a file all settings have the table's defaults, typed."""
    settings = decode({}, USABLE_BYTES)
    assert settings.pool.memory == 24 * 10**9
    assert settings.pool.max_models is None
    assert settings.pool.keep_alive == 1800
    assert settings.http.port == 6593
    assert settings.cloud.rules == {}


def test_values_are_typed_and_keyed_tables_filled() -> None:
    """A keyed table's entry gets the defaults of what it leaves out."""
    document = {
        "pool": {"memory": "60%", "keep_alive": "never", "preload": ["b", "a"]},
        "models": {"org/name": {"pin": True}},
        "cloud": {
            "providers": {"p": {"base_url": "https://host/v1/", "auth": {"env": "KEY"}}},
            "rules": {"r": {"match": "x", "to": ["p/x"]}},
        },
    }
    settings = decode(document, USABLE_BYTES)
    assert settings.pool.memory == 192 * 10**8
    assert settings.pool.keep_alive == math.inf
    assert settings.pool.preload == ("b", "a")
    assert settings.models["org/name"].pin
    assert settings.models["org/name"].keep_alive is None
    assert settings.cloud.providers["p"].base_url == "https://host/v1"
    assert settings.cloud.providers["p"].auth == {"env": "KEY"}
    assert settings.cloud.rules["r"].priority == 100


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"poool": {}}, ("poool",)),
        ({"pool": {"memry": 1}}, ("pool", "memry")),
        ({"pool": 7}, ("pool",)),
        ({"pool": {"memory": "lots"}}, ("pool", "memory")),
        ({"models": 7}, ("models",)),
        ({"models": {"a": 7}}, ("models", "a")),
        ({"models": {"a": {"pn": True}}}, ("models", "a", "pn")),
        ({"cloud": {"providers": {"p": {}}}}, ("cloud", "providers", "p", "base_url")),
        ({"cloud": {"rules": {"r": {"mode": "always"}}}}, ("cloud", "rules", "r", "match")),
        ({"cloud": {"rules": {"r": {"match": "x", "mode": "sometimes"}}}}, ("cloud", "rules", "r", "mode")),
    ],
)
def test_a_problem_names_its_place(document: dict[str, Any], path: tuple[str, ...]) -> None:
    """An unknown key, a wrong shape and a bad value each carry the path at fault."""
    with pytest.raises(SettingProblem) as caught:
        decode(document, USABLE_BYTES)
    assert path == caught.value.path
    assert str(caught.value).startswith(format_path(path))


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["pool", "cloud", "rules", "providers", "models", "memory", "match", "auth", "env", "x"]),
            inner,
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["pool", "cloud", "models", "http", "x"]), SHAPES))
def test_no_document_does_worse_than_a_problem(document: dict[str, Any]) -> None:
    """Any parsed document gives a snapshot or one SettingProblem."""
    try:
        settings = decode(document, USABLE_BYTES)
    except SettingProblem as problem:
        reason = problem.reason
    else:
        reason = "none"
        assert isinstance(settings, Settings)
    assert reason


def test_every_row_is_reached_by_its_path() -> None:
    """Rows, find_row and lookup agree, and a snapshot has a value for each plain row."""
    settings = decode({}, USABLE_BYTES)
    for path, row in rows():
        assert row is find_row(tuple("any id" if part == "*" else part for part in path))
        if "*" not in path:
            assert lookup(settings, path) == row.kind.parse(row.default, USABLE_BYTES)
    assert find_row(("pool",)) is None
    assert find_row(("pool", "nothing")) is None
    with pytest.raises(KeyError):
        lookup(settings, ("models", "unknown", "pin"))


def test_set_verbs_are_the_live_scalars_of_the_pool() -> None:
    """A `pool set-*` verb needs no restart and takes one value."""
    verbs = {path: row for path, row in rows() if row.verb}
    assert ("pool", "memory") in verbs
    assert all(path[0] == "pool" for path in verbs)


def test_a_snapshot_cannot_be_changed() -> None:
    """Settings change by a commit only: neither fields nor keyed tables can be assigned."""
    settings = decode({"models": {"m": {}}}, USABLE_BYTES)
    with pytest.raises(AttributeError):
        settings.pool.memory = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.models["n"] = settings.models["m"]  # type: ignore[index]
