"""The kinds of setting: what they take, what they refuse, and with which words."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.protocol import kind
from mlxd.protocol.kind import Machine
from mlxd.protocol.table import rows

MACHINE = Machine(usable_bytes=32 * 10**9)

KINDS: dict[str, kind.Kind[Any]] = {".".join(path): row.kind for path, row in rows()}
ACCEPTED: list[tuple[kind.Kind[Any], Any, Any]] = [
    (kind.Boolean(), True, True),
    (kind.Boolean(), "On", True),
    (kind.Boolean(), "no", False),
    (kind.Integer(0, 10), 0, 0),
    (kind.Integer(0, 10), "10", 10),
    (kind.Integer(-5, 10), "-5", -5),
    (kind.Integer(1, 10, none="none"), "none", None),
    (kind.Bytes(0, 2**30), "1GiB", 2**30),
    (kind.Bytes(0, 2**30), 0, 0),
    (kind.Memory(), "auto", 24 * 10**9),
    (kind.Memory(), "AUTO", 24 * 10**9),
    (kind.Memory(), "50%", 16 * 10**9),
    (kind.Memory(), "1%", 32 * 10**7),
    (kind.Memory(), "100GB", 10**11),
    (kind.Memory(), 10**6, 10**6),
    (kind.Duration(0, 60), "1m", 60.0),
    (kind.Duration(0, 60), 0, 0.0),
    (kind.Duration(0, 60), 1.5, 1.5),
    (kind.Duration(0, 60, none="never"), "never", math.inf),
    (kind.Duration(0, 60, inherit=True), "inherit", None),
    (kind.Choice("a", "b"), "b", "b"),
    (kind.Text(1, 3), "abc", "abc"),
    (kind.TextList(), "a, b", ("a", "b")),
    (kind.TextList(), "", ()),
    (kind.TextList(), ["b", "a"], ("b", "a")),
    (kind.URL(), "https://host/v1/", "https://host/v1"),
    (kind.URL(), "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
    (kind.URL(), "http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    (kind.URL(), "http://192.168.1.7/v1", "http://192.168.1.7/v1"),
    (kind.URL(), "http://studio.local/v1", "http://studio.local/v1"),
    (kind.URL(is_proxy=True, none="none"), "http://proxy.example:3128/", "http://proxy.example:3128"),
    (kind.URL(is_proxy=True, none="none"), "none", None),
    (kind.URL(), "https://münchen.example./v1", "https://münchen.example./v1"),
    (kind.SecretReference(), None, None),
    (kind.SecretReference(), {"env": "MY_KEY"}, {"env": "MY_KEY"}),
]
REFUSED: list[tuple[kind.Kind[Any], Any, str]] = [
    (kind.Boolean(), 1, "true or false"),
    (kind.Boolean(), "maybe", "true or false"),
    (kind.Integer(0, 10), 11, "from 0 to 10"),
    (kind.Integer(0, 10), -1, "from 0 to 10"),
    (kind.Integer(0, 10), "abc", "from 0 to 10"),
    (kind.Integer(0, 10), 1.0, "from 0 to 10"),
    (kind.Integer(0, 10), True, "from 0 to 10"),
    (kind.Integer(0, 10), "none", "from 0 to 10"),
    (kind.Bytes(1024, 2**30), "1KB", "from 1KiB to 1GiB"),
    (kind.Bytes(1024, 2**30), "2GiB", "from 1KiB to 1GiB"),
    (kind.Bytes(1024, 2**30), "abc", "from 1KiB to 1GiB"),
    (kind.Bytes(1024, 2**30), True, "from 1KiB to 1GiB"),
    (kind.Bytes(1024, 2**30), 1.5, "from 1KiB to 1GiB"),
    (kind.Memory(), "-5GB", "smallest memory limit is 1MB"),
    (kind.Memory(), "0", "smallest memory limit is 1MB"),
    (kind.Memory(), "1048577GiB", "largest memory limit is 1024TiB"),
    (kind.Memory(), 2**63, "largest memory limit is 1024TiB"),
    (kind.Memory(), "500%", "from 1% to 100%"),
    (kind.Memory(), "0%", "from 1% to 100%"),
    (kind.Memory(), "-5%", "from 1% to 100%"),
    (kind.Memory(), "nan%", "from 1% to 100%"),
    (kind.Memory(), "abc%", "from 1% to 100%"),
    (kind.Memory(), "abc", "from 1% to 100%"),
    (kind.Memory(), "24G", "unknown unit 'G'"),
    (kind.Memory(), True, "from 1% to 100%"),
    (kind.Memory(), 0.5, "from 1% to 100%"),
    (kind.Duration(0, 60), "2m", "from 0s to 1m"),
    (kind.Duration(0, 60), "-5s", "from 0s to 1m"),
    (kind.Duration(0, 60), -5, "from 0s to 1m"),
    (kind.Duration(0, 60), math.nan, "from 0s to 1m"),
    (kind.Duration(0, 60), math.inf, "from 0s to 1m"),
    (kind.Duration(0, 60), "nan", "from 0s to 1m"),
    (kind.Duration(0, 60), "never", "from 0s to 1m"),
    (kind.Duration(0, 60), 10**400, "from 0s to 1m"),
    (kind.Duration(0, 60), True, "from 0s to 1m"),
    (kind.Duration(0, 60, none="never", inherit=True), "ever", "'never', or 'inherit'"),
    (kind.Choice("a", "b"), "c", "one of a, b"),
    (kind.Choice("a", "b"), ["a"], "one of a, b"),
    (kind.Choice("a"), "c", "is not 'a'"),
    (kind.Text(1, 3), "", "1 to 3 characters"),
    (kind.Text(1, 3), "abcd", "1 to 3 characters"),
    (kind.Text(1, 3), 12, "1 to 3 characters"),
    (kind.TextList(), "a,,b", "a list of texts"),
    (kind.TextList(), ["a", 1], "a list of texts"),
    (kind.TextList(), 7, "a list of texts"),
    (kind.TextList(), ["a", "b", "a"], "'a' stands in the list twice"),
    (kind.TextList(("a", "b")), ["a", "c"], "'c' is not one of a, b"),
    (kind.URL(), "ftp://host/v1", "https://host/v1"),
    (kind.URL(), "host/v1", "https://host/v1"),
    (kind.URL(), "https://", "https://host/v1"),
    (kind.URL(), 7, "https://host/v1"),
    (kind.URL(is_proxy=True, none="none"), "socks5://host", "http://host:3128, or 'none'"),
    (kind.URL(is_proxy=True, none="none"), "http://user:secret@host", "may not hold credentials"),
    (kind.URL(), "http://api.example.com/v1", "unencrypted"),
    (kind.URL(), "https://host:99999/v1", "valid port"),
    (kind.URL(), "https://host/v1?key=1", "query"),
    (kind.URL(), "https://host/v1#top", "fragment"),
    (kind.URL(), "https://host/v1\n", "https://host/v1"),
    (kind.URL(), "https://ho st/v1", "https://host/v1"),
    (kind.URL(), "https://…/v1", "https://host/v1"),
    (kind.URL(), "https://api..org/v1", "https://host/v1"),
    (kind.URL(), "http://[::1", "IPv6"),
    (kind.SecretReference(), {}, "env"),
    (kind.SecretReference(), {"env": ""}, "auth.env"),
]


@pytest.mark.parametrize(("of", "value", "parsed"), ACCEPTED, ids=repr)
def test_values_within_bounds_are_typed(of: kind.Kind[Any], value: Any, parsed: Any) -> None:
    """A value of the file or of a command line becomes the typed value; what is written for it means the same."""
    assert parsed == of.parse(value, MACHINE)
    assert parsed == of.parse(of.to_toml(value), MACHINE)


@pytest.mark.parametrize(("of", "value", "words"), REFUSED, ids=repr)
def test_other_values_are_refused_with_the_bound(of: kind.Kind[Any], value: Any, words: str) -> None:
    """The message says what would have been accepted."""
    with pytest.raises(ValueError, match=r".") as caught:
        of.parse(value, MACHINE)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (kind.URL(), "https://user:sk-hunter2@host/v1"),
        (kind.URL(), "ftp://sk-hunter2@host/v1"),
        (kind.URL(), "https://host/v1?key=sk-hunter2"),
        (kind.SecretReference(), "sk-hunter2"),
        (kind.SecretReference(), {"env": "sk-hunter2"}),
        (kind.SecretReference(), {"key": "sk-hunter2"}),
        (kind.SecretReference(), {"env": ["sk-hunter2"]}),
    ],
    ids=repr,
)
def test_a_key_in_the_wrong_place_is_not_repeated(of: kind.Kind[Any], value: Any) -> None:
    """Where a person may have put a secret, the message does not hold it."""
    with pytest.raises(ValueError, match=r".") as caught:
        of.parse(value, MACHINE)
    assert "hunter2" not in str(caught.value)


TOML_VALUES = st.recursive(
    st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "none", "never", "inherit", "5%", "1GB", "30s", "https://h", "-1", "1e400", "[::1"])
    | st.dates()
    | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["env", "a"]), inner, max_size=2),
    max_leaves=5,
)


@given(st.sampled_from(sorted(KINDS)), TOML_VALUES)
def test_no_value_does_worse_than_a_refusal(name: str, value: Any) -> None:
    """Whatever a file holds, a kind returns the typed value or raises ValueError with a reason."""
    try:
        parsed = KINDS[name].parse(value, MACHINE)
    except ValueError as error:
        words = str(error)
    else:
        words = KINDS[name].describe()
        assert parsed == KINDS[name].parse(KINDS[name].to_toml(value), MACHINE)
    assert words


@pytest.mark.parametrize(
    ("name", "row"), [(".".join(path), row) for path, row in rows()], ids=lambda item: str(item)[:40]
)
def test_every_default_passes_its_own_bounds(name: str, row: Any) -> None:
    """A default is a value that the kind takes, and survives being written to a file."""
    if row.default is not None:
        row.kind.parse(row.default, MACHINE)
        assert row.default == row.kind.to_toml(row.default)
    assert row.help.endswith(".")
