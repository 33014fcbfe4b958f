"""Where things lie."""

from pathlib import Path

import pytest

from mlxd.protocol.paths import Home


def test_the_home_is_the_environments_or_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MLXD_HOME moves the whole folder; unset or empty means ~/.mlxd; a relative one is made absolute."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    homes = {}
    for value in ("", "~/elsewhere", "here", "/srv/mlxd"):
        monkeypatch.setenv("MLXD_HOME", value)
        homes[value] = Home.from_environment().root
    monkeypatch.delenv("MLXD_HOME")
    assert Home.from_environment().root == tmp_path / ".mlxd"
    assert homes == {
        "": tmp_path / ".mlxd",
        "~/elsewhere": tmp_path / "elsewhere",
        "here": tmp_path / "here",
        "/srv/mlxd": Path("/srv/mlxd"),
    }


def test_everything_lies_in_the_home(tmp_path: Path) -> None:
    """Moving the home moves all of it."""
    home = Home(tmp_path)
    names = ("config", "socket", "lock", "history", "models", "logs", "log", "secrets", "cache")
    assert all(getattr(home, name).is_relative_to(tmp_path) for name in names)
    assert len({getattr(home, name) for name in names}) == len(names)
