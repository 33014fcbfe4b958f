"""The kinds of setting: what they take, what they refuse, and with which words."""

import math
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from mlxd.protocol.address import PROXY, SECRET, URL
from mlxd.protocol.kind import DURATION, MEMORY, SIZE, Kind, OneOf, kind_of
from mlxd.protocol.settings import INHERITED, NEVER, NONE
from mlxd.protocol.table import rows

USABLE_BYTES = 32 * 10**9
BOOLEAN, CHOICE = kind_of(bool), kind_of(Literal["a", "b"])
WHOLE = kind_of(Annotated[int, Meta(ge=0, le=10)])
WHOLE_OR_NONE = kind_of(Annotated[int | None, Meta(ge=1, le=10), NONE])
ABOVE = kind_of(Annotated[float, Meta(gt=0, le=10)])
A_SIZE = kind_of(Annotated[int, Meta(ge=1024, le=2**30), SIZE])
A_DURATION = kind_of(Annotated[float, Meta(ge=0, le=60), DURATION])
DURATION_OR_WORD = kind_of(Annotated[float | None, Meta(ge=0, le=60), DURATION, NEVER, INHERITED])
TEXT, TEXTS = kind_of(Annotated[str, Meta(min_length=1, max_length=3)]), kind_of(tuple[str, ...])

KINDS: dict[str, Kind] = {".".join(path): row.kind for path, row in rows()}
ACCEPTED: list[tuple[Kind, Any, Any]] = [
    (BOOLEAN, True, True),
    (BOOLEAN, "On", True),
    (BOOLEAN, "no", False),
    (WHOLE, 0, 0),
    (WHOLE, "10", 10),
    (kind_of(Annotated[int, Meta(ge=-5, le=10)]), "-5", -5),
    (WHOLE_OR_NONE, "none", None),
    (A_SIZE, "1GiB", 2**30),
    (A_SIZE, 1024, 1024),
    (MEMORY, "auto", 24 * 10**9),
    (MEMORY, "AUTO", 24 * 10**9),
    (MEMORY, "50%", 16 * 10**9),
    (MEMORY, "1%", 32 * 10**7),
    (MEMORY, "100GB", 10**11),
    (MEMORY, 10**6, 10**6),
    (A_DURATION, "1m", 60.0),
    (A_DURATION, 0, 0.0),
    (A_DURATION, 1.5, 1.5),
    (DURATION_OR_WORD, "never", math.inf),
    (DURATION_OR_WORD, "inherit", None),
    (CHOICE, "b", "b"),
    (TEXT, "abc", "abc"),
    (TEXTS, "a, b", ("a", "b")),
    (TEXTS, "", ()),
    (TEXTS, ["b", "a"], ("b", "a")),
    (URL, "https://host/v1/", "https://host/v1"),
    (URL, "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
    (URL, "http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    (URL, "http://192.168.1.7/v1", "http://192.168.1.7/v1"),
    (URL, "http://studio.local/v1", "http://studio.local/v1"),
    (PROXY, "http://proxy.example:3128/", "http://proxy.example:3128"),
    (PROXY, "none", None),
    (URL, "https://münchen.example./v1", "https://münchen.example./v1"),
    (SECRET, None, None),
    (SECRET, {"env": "MY_KEY"}, {"env": "MY_KEY"}),
]
REFUSED: list[tuple[Kind, Any, str]] = [
    (BOOLEAN, 1, "true or false"),
    (BOOLEAN, "maybe", "true or false"),
    (WHOLE, 11, "from 0 to 10"),
    (WHOLE, -1, "from 0 to 10"),
    (WHOLE, "abc", "from 0 to 10"),
    (WHOLE, 1.0, "from 0 to 10"),
    (WHOLE, True, "from 0 to 10"),
    (WHOLE, "none", "from 0 to 10"),
    (A_SIZE, "1KB", "from 1KiB to 1GiB"),
    (A_SIZE, "2GiB", "from 1KiB to 1GiB"),
    (A_SIZE, "abc", "from 1KiB to 1GiB"),
    (A_SIZE, True, "from 1KiB to 1GiB"),
    (A_SIZE, 1.5, "from 1KiB to 1GiB"),
    (MEMORY, "-5GB", "smallest memory limit is 1MB"),
    (MEMORY, "0", "smallest memory limit is 1MB"),
    (MEMORY, "1048577GiB", "largest memory limit is 1024TiB"),
    (MEMORY, 2**63, "largest memory limit is 1024TiB"),
    (MEMORY, "500%", "from 1% to 100%"),
    (MEMORY, "0%", "from 1% to 100%"),
    (MEMORY, "-5%", "from 1% to 100%"),
    (MEMORY, "nan%", "from 1% to 100%"),
    (MEMORY, "abc%", "from 1% to 100%"),
    (MEMORY, "abc", "from 1% to 100%"),
    (MEMORY, "24G", "unknown unit 'G'"),
    (MEMORY, True, "from 1% to 100%"),
    (MEMORY, 0.5, "from 1% to 100%"),
    (A_DURATION, "2m", "from 0s to 1m"),
    (A_DURATION, "-5s", "from 0s to 1m"),
    (A_DURATION, -5, "from 0s to 1m"),
    (A_DURATION, math.nan, "from 0s to 1m"),
    (A_DURATION, math.inf, "from 0s to 1m"),
    (A_DURATION, "nan", "from 0s to 1m"),
    (A_DURATION, "never", "from 0s to 1m"),
    (A_DURATION, 10**400, "from 0s to 1m"),
    (A_DURATION, True, "from 0s to 1m"),
    (DURATION_OR_WORD, "ever", "'never', or 'inherit'"),
    (CHOICE, "c", "one of a, b"),
    (CHOICE, ["a"], "one of a, b"),
    (kind_of(Literal["a"]), "c", "is not 'a'"),
    (TEXT, "", "1 to 3 characters"),
    (TEXT, "abcd", "1 to 3 characters"),
    (TEXT, 12, "1 to 3 characters"),
    (TEXTS, "a,,b", "a list of texts"),
    (TEXTS, ["a", 1], "a list of texts"),
    (TEXTS, 7, "a list of texts"),
    (TEXTS, ["a", "b", "a"], "'a' stands in the list twice"),
    (kind_of(Annotated[tuple[str, ...], OneOf(("a", "b"))]), ["a", "c"], "'c' is not one of a, b"),
    (URL, "ftp://host/v1", "https://host/v1"),
    (URL, "host/v1", "https://host/v1"),
    (URL, "https://", "https://host/v1"),
    (URL, 7, "https://host/v1"),
    (PROXY, "socks5://host", "http://host:3128, or 'none'"),
    (PROXY, "http://user:secret@host", "may not hold credentials"),
    (URL, "http://api.example.com/v1", "unencrypted"),
    (URL, "https://host:99999/v1", "valid port"),
    (URL, "https://host/v1?key=1", "query"),
    (URL, "https://host/v1#top", "fragment"),
    (URL, "https://host/v1\n", "https://host/v1"),
    (URL, "https://ho st/v1", "https://host/v1"),
    (URL, "https://…/v1", "https://host/v1"),
    (URL, "https://api..org/v1", "https://host/v1"),
    (URL, "http://[::1", "IPv6"),
    (SECRET, {}, "env"),
    (SECRET, {"env": ""}, "auth.env"),
]


@pytest.mark.parametrize(("of", "value", "parsed"), ACCEPTED, ids=repr)
def test_values_within_bounds_are_typed(of: Kind, value: Any, parsed: Any) -> None:
    """A value of the file or of a command line becomes the typed value; what is written for it means the same."""
    assert parsed == of.parse(value, USABLE_BYTES)
    assert parsed == of.parse(of.to_toml(value), USABLE_BYTES)


@pytest.mark.parametrize(("of", "value", "words"), REFUSED, ids=repr)
def test_other_values_are_refused_with_the_bound(of: Kind, value: Any, words: str) -> None:
    """The message says what would have been accepted."""
    with pytest.raises(ValueError, match=r".") as caught:
        of.parse(value, USABLE_BYTES)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("of", "value", "message"),
    [
        (BOOLEAN, "maybe", "'maybe' is not true or false"),
        (WHOLE, 1.5, "1.5 is not a whole number from 0 to 10"),
        (WHOLE_OR_NONE, "many", "'many' is not a whole number from 1 to 10, or 'none'"),
        (WHOLE_OR_NONE, 11, "11 is out of bounds; it must be a whole number from 1 to 10, or 'none'"),
        (ABOVE, 0, "0 is out of bounds; it must be a number above 0 and at most 10"),
        (A_SIZE, 1.5, "1.5 is not a size from 1KiB to 1GiB"),
        (
            A_SIZE,
            "lots",
            (
                "'lots' is not a size; write a number and a unit, such as 24GB or 512MiB;"
                " it must be a size from 1KiB to 1GiB"
            ),
        ),
        (A_SIZE, "2GiB", "2GiB is out of bounds; it must be a size from 1KiB to 1GiB"),
        (A_DURATION, True, "True is not a duration from 0s to 1m"),
        (
            DURATION_OR_WORD,
            "soon",
            (
                "'soon' is not a duration; it must be a duration from 0s to 1m, or 'never', or 'inherit',"
                " such as 250ms, 30s, 5m or 1h30m"
            ),
        ),
        (A_DURATION, "2m", "2m is out of bounds; it must be a duration from 0s to 1m"),
        (MEMORY, True, "True is not a size of at least 1MB, a percentage from 1% to 100%, or 'auto'"),
        (MEMORY, "0%", "0% is out of bounds; a percentage of usable memory must be from 1% to 100%"),
        (MEMORY, 7, "7 is out of bounds; the smallest memory limit is 1MB"),
        (CHOICE, "c", "'c' is not one of a, b"),
        (TEXT, "", "'' is not text of 1 to 3 characters"),
        (TEXTS, "a,,b", "'a,,b' is not a list of texts"),
        (PROXY, 7, "7 is not an address such as http://host:3128, or 'none'"),
        (
            SECRET,
            {},
            'it must be a reference such as { env = "NAME" }, { file = "PATH" } or { keychain = "SERVICE/NAME" }',
        ),
    ],
    ids=repr,
)
def test_a_refusal_says_what_came_and_what_may(of: Kind, value: Any, message: str) -> None:
    """The message names the value, the kind, the bounds in their unit and the words."""
    with pytest.raises(ValueError, match=r".") as caught:
        of.parse(value, USABLE_BYTES)
    assert message == str(caught.value)


@pytest.mark.parametrize(
    ("of", "value"),
    [
        (URL, "https://user:sk-hunter2@host/v1"),
        (URL, "ftp://sk-hunter2@host/v1"),
        (URL, "https://host/v1?key=sk-hunter2"),
        (SECRET, "sk-hunter2"),
        (SECRET, {"env": "sk-hunter2"}),
        (SECRET, {"key": "sk-hunter2"}),
        (SECRET, {"env": ["sk-hunter2"]}),
    ],
    ids=repr,
)
def test_a_key_in_the_wrong_place_is_not_repeated(of: Kind, value: Any) -> None:
    """Where a person may have put a secret, the message does not hold it."""
    with pytest.raises(ValueError, match=r".") as caught:
        of.parse(value, USABLE_BYTES)
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
        parsed = KINDS[name].parse(value, USABLE_BYTES)
    except ValueError as error:
        words = str(error)
    else:
        words = KINDS[name].accepted
        assert parsed == KINDS[name].parse(KINDS[name].to_toml(value), USABLE_BYTES)
    assert words


@pytest.mark.parametrize(
    ("name", "row"), [(".".join(path), row) for path, row in rows()], ids=lambda item: str(item)[:40]
)
def test_every_default_passes_its_own_bounds(name: str, row: Any) -> None:
    """A default is a value that the kind takes, and survives being written to a file."""
    if row.default is not None:
        row.kind.parse(row.default, USABLE_BYTES)
        assert row.default == row.kind.to_toml(row.default)
    assert row.help.endswith(".")
