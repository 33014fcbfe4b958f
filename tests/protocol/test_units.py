"""Bytes and durations: `parse_` and `format_` are inverse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.protocol import units


@given(st.integers(-(2**70), 2**70))
def test_bytes_survive_their_text(n_bytes: int) -> None:
    """Every number of bytes is exactly what its text stands for, also where a float is not exact."""
    assert n_bytes == units.parse_bytes(units.format_bytes(n_bytes))


@given(st.integers(0, 10**15))
def test_durations_survive_their_text(milliseconds: int) -> None:
    """Every duration of whole milliseconds is what its text stands for."""
    seconds = milliseconds / 1000
    assert milliseconds == round(units.parse_duration_s(units.format_duration(seconds)) * 1000)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("24GB", 24 * 10**9),
        ("24 gb", 24 * 10**9),
        (" 512MiB ", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("0.1GB", 10**8),
        ("1024", 1024),
        ("0B", 0),
        ("-5GB", -5 * 10**9),
        ("+1KB", 1000),
        ("9007199254740993B", 9007199254740993),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_as_people_write_them(text: str, n_bytes: int) -> None:
    """Units in any case, blanks, fractions and signs are understood; GB is 10^9 and GiB 2^30."""
    assert n_bytes == units.parse_bytes(text)


@pytest.mark.parametrize(
    "text", ["", "GB", "abc", "24G", "24XB", "1e9", "1,5GB", "0x10", "24GB GB", "٣GB", "9" * 400, "."]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """A bare G, an unknown unit, foreign digits and endless numbers are refused with the text in the message."""
    with pytest.raises(ValueError, match=r"is not a size|unknown unit"):
        units.parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("1h30m", 5400), ("250ms", 0.25), ("2d", 172800), (" 1.5m ", 90), ("0s", 0), ("0", 0), ("0.0", 0)],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    """Parts add up, and nothing is nothing in every unit."""
    assert seconds == units.parse_duration_s(text)


@pytest.mark.parametrize(("text", "seconds"), [("45", 45), ("1.5", 1.5), ("-5", -5), (" 30 ", 30)])
def test_a_number_alone_is_no_duration(text: str, seconds: float) -> None:
    """Nobody knows whether 30 are seconds or minutes; only what an older version has written is still read."""
    with pytest.raises(ValueError, match=rf"has no unit; expected a duration such as {text.strip()}s, "):
        units.parse_duration_s(text)
    assert units.parse_duration_s(text, is_unit_needed=False) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "abc", "5 s", "5x", "-5s", "nan", "inf", "-inf", "1h-5m", "9" * 400 + "h", "٣s"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Not-a-number and infinity are no durations, whatever float() makes of them."""
    with pytest.raises(ValueError, match="is not a duration"):
        units.parse_duration_s(text)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (24 * 10**9, "24.0 GB (22.4 GiB)"),
        (512 * 2**20, "536.9 MB (512.0 MiB)"),
        (1500, "1.5 KB (1.5 KiB)"),
        (999, "999 B"),
        (0, "0 B"),
    ],
)
def test_sizes_are_shown_in_both_units(n_bytes: int, text: str) -> None:
    """People see decimal and binary, so that nobody has to guess which was meant."""
    assert text == units.show_bytes(n_bytes)
