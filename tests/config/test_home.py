"""A settings file that is gone: with its folder it is a problem, alone it stands for the defaults."""

from pathlib import Path

import pytest

from mlxd.config import SettingsStore, Terms
from mlxd.protocol.errors import FileInvalid, FileMissing
from tests.support.settings import TEXT, USABLE_BYTES, MakeStore, StoreFixture, turn


def find_problem(store: SettingsStore) -> FileInvalid | None:
    """Return what is wrong now; a property that mypy has narrowed would not change."""
    return store.problem


async def poll(fixture: StoreFixture) -> None:
    """Look until what is there has settled."""
    for _ in range(3):
        await fixture.store.poll()


@pytest.mark.parametrize("text", [TEXT, None])
async def test_a_folder_that_is_moved_away_is_a_problem_and_no_edit(tmp_path: Path, text: str | None) -> None:
    """The settings in force stay, no commit makes a new folder, and all is well once the folder is back."""
    home = tmp_path / "home"
    home.mkdir()
    if text is not None:
        (home / "config.toml").write_text(text)
    store = SettingsStore(home / "config.toml", home / "history", USABLE_BYTES, pause=turn)
    before = store.current
    home.rename(tmp_path / "away")
    for _ in range(3):
        await store.poll()
    assert isinstance(store.problem, FileMissing)
    assert store.problem.code == "config.file_missing"
    assert f"its folder {home} was moved away" in store.problem.message
    assert (store.current, store.generation, store.has_booted_invalid) == (before, int(text is not None), False)
    for persist in (True, False):
        with pytest.raises(FileMissing):
            await store.replace("[pool]\nmax_models = 1\n", Terms("test", persist=persist))
    assert not home.exists()
    (tmp_path / "away").rename(home)
    for _ in range(3):
        await store.poll()
    assert find_problem(store) is None
    assert (store.current, store.generation) == (before, int(text is not None))


async def test_an_empty_folder_in_the_place_of_the_old_one_is_a_problem_too(tmp_path: Path) -> None:
    """A mount point without its disk holds no settings, and says nothing about them."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(TEXT)
    store = SettingsStore(home / "config.toml", home / "history", USABLE_BYTES, pause=turn)
    home.rename(tmp_path / "away")
    home.mkdir()
    with pytest.raises(FileMissing):
        await store.reload(Terms("test"))
    assert store.current.pool.memory == 192 * 10**8
    (home / "config.toml").write_text(TEXT.replace("60%", "50%"))
    await store.reload(Terms("test"))
    assert store.problem is None
    assert store.current.pool.memory == 16 * 10**9


async def test_a_dangling_link_to_a_folder_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    """A settings file that is a link lives where the link leads."""
    (tmp_path / "home").mkdir()
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "mlxd.toml").write_text(TEXT)
    link = tmp_path / "home" / "config.toml"
    link.symlink_to(tmp_path / "dotfiles" / "mlxd.toml")
    store = SettingsStore(link, tmp_path / "home" / "history", USABLE_BYTES, pause=turn)
    (tmp_path / "dotfiles").rename(tmp_path / "away")
    with pytest.raises(FileMissing, match=r"its folder .*dotfiles was"):
        await store.reload(Terms("test"))
    link.unlink()
    await store.reload(Terms("test"))
    assert store.current.pool.memory == 24 * 10**9


async def test_a_file_that_is_deleted_alone_means_the_defaults_and_is_told(make: MakeStore) -> None:
    """The defaults are in force, and the warning names the command that brings the file back."""
    fixture = make(TEXT)
    fixture.path.unlink()
    await poll(fixture)
    assert fixture.store.current.pool.memory == 24 * 10**9
    (event,) = fixture.events
    assert event.data["warnings"] == [
        "config.toml was deleted, so the defaults are in force; to have it back: mlxctl config rollback 1"
    ]
    await fixture.store.rollback(1, Terms("test"))
    assert fixture.path.read_text() == TEXT
