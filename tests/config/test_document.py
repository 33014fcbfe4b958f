"""From the bytes of a settings file to a snapshot, with the place of every mistake; and what two files differ in."""

import itertools
import re
import tomllib
from typing import Any

import pytest

from mlxd.config.default import render_default
from mlxd.config.document import differences, is_entry, nearest, parse, paths, row_of, written
from mlxd.protocol.errors import FileInvalid, UnknownSetting
from mlxd.protocol.key import parse_path
from mlxd.protocol.table import decode, find_row, rows

USABLE_BYTES = 32 * 10**9


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (b"[pool]\nmemory = \n", "2:10", "Invalid value"),
        (b"[pool\n", "1:6", "Expected ']'"),
        (b"[pool]\n[pool]\n", "2:6", "Cannot declare pool twice"),
        (b"a = 1\na = 1\n", "2:", "overwrite"),
        (b'[pool]\n\n  memory = "lots"\n', "3:3", "pool.memory: 'lots' is not a size"),
        (b"[pool]\nmemry = 1\n", "2:1", "pool.memry: there is no such setting; the nearest is pool.memory"),
        (b"[poool]\nmemory = 1\n", "1:1", "poool: there is no such setting; the nearest is pool"),
        (b"# c\npool.max_models = 0\n", "2:1", "from 1 to 1000"),
        (b'[cloud.rules.big]\nmode = "always"\n', "1:1", "cloud.rules.big.match: it is missing"),
        (b'[cloud]\nproviders = { p = { base_url = "ftp://x" } }\n', "2:1", "cloud.providers.p.base_url"),
        (b"# \xff\n", "1:1", "not UTF-8"),
        ("\ufeffpool.max_models = 0\n".encode(), "1:1", "from 1 to 1000"),
        (b"x = " + b"[" * 100_000, "1:1", "nested too deeply"),
        (b"x = " + b"1" * 5_000, "1:1", "limit"),
        (b'x = "', "1:", "Unterminated string"),
    ],
)
def test_a_bad_file_names_the_place(text: bytes, place: str, words: str) -> None:
    """Every kind of mistake is answered with file:line:col and the reason."""
    with pytest.raises(FileInvalid) as caught:
        parse(text, "config.toml", USABLE_BYTES)
    assert caught.value.message.startswith(f"config.toml:{place}")
    assert words in caught.value.message
    assert {"file", "line", "column"} == caught.value.data.keys()


def test_the_default_file_means_the_same_as_none() -> None:
    """A file with everything commented out has every default."""
    version = parse(render_default().encode(), "config.toml", USABLE_BYTES)
    assert version.settings == decode({}, USABLE_BYTES)
    assert list(paths(version.document)) == [path for path, _ in rows() if "*" not in path]


def test_the_default_file_has_every_setting_with_its_default() -> None:
    """Taking the `#` off a setting states what holds anyway; nothing of the table is left out."""
    text = render_default()
    begun = r"# \w+ = |# \[|\["
    lines = [
        line for line in text.splitlines() if re.match(rf'{begun}|#     "|# \]', line)
    ]  # and what a list goes on with
    stated = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines if not line.endswith("= ...")))
    assert len([line for line in lines if re.match(begun, line)]) == len(rows_and_tables())
    for path, row in rows():
        node: Any = stated
        for part in path:
            node = node.get("ORG/NAME" if path[0] == "models" and part == "*" else "ID" if part == "*" else part, {})
        assert node == ({} if row.default is None else row.default)


def test_the_default_file_sets_its_settings_apart() -> None:
    """No setting's help stands right below the one before it."""
    lines = render_default().splitlines()
    after = [below for line, below in itertools.pairwise(lines) if re.match(r"# \w+ = ", line)]
    assert [line for line in after if line not in ("", "#") and not re.match(r'#     "', line)] == []


def rows_and_tables() -> set[tuple[str, ...]]:
    """Return all settings and all tables that hold some."""
    return {path for path, _ in rows()} | {path[:-1] for path, _ in rows()}


def test_differences_are_told_by_key_with_the_default_where_a_file_is_silent() -> None:
    """A changed, an added and a removed setting each say old and new as they are written."""
    old = {"pool": {"memory": "60%", "max_models": 2}, "models": {"o/n.5": {"pin": True}}}
    new = {"pool": {"memory": "50%", "keep_alive": "2s"}, "models": {}}
    assert differences(old, new) == [
        {"key": "pool.memory", "old": "60%", "new": "50%"},
        {"key": "pool.max_models", "old": 2, "new": "none"},
        {"key": 'models."o/n.5".pin', "old": True, "new": False},
        {"key": "pool.keep_alive", "old": "30m", "new": "2s"},
    ]


def test_paths_are_listed_for_each_entry_of_a_keyed_table() -> None:
    """A rule that states two of its settings is listed with all of them."""
    listed = paths({"cloud": {"rules": {"r": {"match": "x", "to": []}}}})
    assert {"match", "mode", "on", "to", "priority", "enabled"} == {
        path[3] for path in listed if path[:3] == ("cloud", "rules", "r")
    }
    assert all(find_row(path) is not None for path in listed)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("pool.memry", "pool.memory"),
        ("pol.memory", "pool.memory"),
        ('models."o/n".pinn', 'models."o/n".pin'),
        ("cloud.rule.big.to", "cloud.rules.big.to"),
        ("zzzzzzzz", None),
    ],
)
def test_the_nearest_setting_is_named(key: str, near: str | None) -> None:
    """A slip of the pen is answered with the key that was meant, ids and all."""
    path = parse_path(key)
    assert near == nearest(path)
    with pytest.raises(UnknownSetting, match=r"there is no setting") as caught:
        row_of(path)
    assert (near is None) == ("nearest" not in caught.value.message)


@pytest.mark.parametrize("key", ["pool", "cloud.rules", "models.tiny"])
def test_a_table_is_no_setting(key: str) -> None:
    """Whoever names a table is told that it is one, and not that the nearest name is the same."""
    with pytest.raises(UnknownSetting, match="it is a table of settings"):
        row_of(parse_path(key))


def test_entries_of_keyed_tables_are_told_from_settings_and_groups() -> None:
    """Only a model, a provider or a rule can be unset as a whole."""
    assert is_entry(("models", "m"))
    assert is_entry(("cloud", "rules", "r"))
    assert not any(
        is_entry(path) for path in [("pool",), ("cloud",), ("cloud", "rules"), ("pool", "memory"), ("x", "y")]
    )


def test_what_is_written_is_told_from_the_default() -> None:
    """60% stays 60%, and a silent file has the default."""
    assert written({"pool": {"memory": "60%"}}, ("pool", "memory")) == ("60%", True)
    assert written({}, ("pool", "memory")) == ("auto", False)
