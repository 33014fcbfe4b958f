"""The file of what was typed in chats."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxctl.line_editor import MAX_ENTRIES, History


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=5))
@settings(max_examples=60)
def test_entries_come_back(tmp_path_factory: pytest.TempPathFactory, entries: list[str]) -> None:
    """Entries of any text, of several lines too, are read as they were added."""
    history = History(tmp_path_factory.getbasetemp() / "history")
    history.clear()
    for entry in entries:
        history.add(entry)
    assert History(history.path).read() == entries


def test_size_is_bounded(tmp_path: Path) -> None:
    """A file that has grown is cut to its newest entries, and stays its owner's alone."""
    history = History(tmp_path / "history")
    history.path.write_text("".join(f"line {number}\n" for number in range(2 * MAX_ENTRIES)))
    entries = history.read()
    assert len(entries) == MAX_ENTRIES
    assert entries[-1] == f"line {2 * MAX_ENTRIES - 1}"
    assert len(history.path.read_text().splitlines()) == MAX_ENTRIES
    assert history.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["history"]


def test_switched_off(tmp_path: Path) -> None:
    """Switched off it writes nothing."""
    history = History(tmp_path / "history")
    history.is_kept = False
    history.add("secret")
    assert not history.path.exists()


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"\\zz;\\\n", b"\\110000;x\n"])
def test_damage_is_survived(tmp_path: Path, damage: bytes) -> None:
    """A file that was not written here is read as far as it goes."""
    (tmp_path / "history").write_bytes(damage + b"good\n")
    assert History(tmp_path / "history").read()[-1] == "good"
