"""API keys: made, known again, refused, bounded, and kept without the secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlxd.apikey import MOST_KEYS, ApiKeys, Rate
from mlxd.atomic_file import AtomicFile
from mlxd.protocol.errors import (
    CommitFailed,
    FileInvalid,
    Forbidden,
    InUse,
    InvalidRequest,
    NotFound,
    RateLimited,
    Unauthenticated,
)
from tests.support.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the rates."""
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the keys are kept."""
    return tmp_path / "apikeys.json"


def mode_of(path: Path) -> int:
    """Return who may do what with the file."""
    return path.stat().st_mode & 0o777


def text_of(path: Path) -> str:
    """Return the file's text, none without a file."""
    return path.read_text() if path.exists() else ""


def write(path: Path, text: str) -> None:
    """Put a text in the file's place."""
    path.write_text(text)


async def opened(path: Path, clock: FakeClock) -> ApiKeys:
    """Return the keys as a daemon has them that starts now."""
    keys = ApiKeys(AtomicFile(path), clock.now, lambda: 1700000000.0)
    await keys.open()
    return keys


async def test_a_key_is_known_again_after_a_restart_and_its_secret_is_not_kept(path: Path, clock: FakeClock) -> None:
    """The file is the owner's alone and holds a salted hash."""
    keys = await opened(path, clock)
    key, secret = await keys.create("app", ["org/*"], "60/min")
    again = await opened(path, clock)
    assert again.authenticate(secret) == key
    assert mode_of(path) == 0o600
    assert secret not in text_of(path)
    assert secret.removeprefix("mlxd-") not in repr(keys)


async def test_two_keys_have_salts_of_their_own(path: Path, clock: FakeClock) -> None:
    """What one has hashed tells nothing of another."""
    keys = await opened(path, clock)
    first, _ = await keys.create("a", [], None)
    second, _ = await keys.create("b", [], None)
    assert first.salt != second.salt


async def test_without_keys_everybody_is_let_in(path: Path, clock: FakeClock) -> None:
    """Whatever clients send by habit."""
    keys = await opened(path, clock)
    assert [keys.authenticate(secret) for secret in (None, "", "unused")] == [None] * 3


@pytest.mark.parametrize("secret", [None, "", "unused", "mlxd-", "mlxd-\udcff"])
async def test_with_a_key_others_are_not(path: Path, clock: FakeClock, secret: str | None) -> None:
    """None, an empty one, a made-up one, one that is no UTF-8."""
    keys = await opened(path, clock)
    await keys.create("app", [], None)
    with pytest.raises(Unauthenticated):
        keys.authenticate(secret)


async def test_a_revoked_key_is_refused_at_once_and_after_a_restart(path: Path, clock: FakeClock) -> None:
    """The others hold."""
    keys = await opened(path, clock)
    _, revoked = await keys.create("a", [], None)
    kept, secret = await keys.create("b", [], None)
    await keys.revoke("a")
    for each in (keys, await opened(path, clock)):
        with pytest.raises(Unauthenticated):
            each.authenticate(revoked)
        assert each.authenticate(secret) == kept


async def test_the_token_of_the_boot_lets_in_and_is_another_each_time(path: Path, clock: FakeClock) -> None:
    """It belongs to no key."""
    keys = await opened(path, clock)
    await keys.create("app", [], None)
    again = await opened(path, clock)
    assert keys.authenticate(keys.boot_token) is None
    assert keys.boot_token not in repr(keys)
    with pytest.raises(Unauthenticated):
        again.authenticate(keys.boot_token)


async def test_models_are_allowed_by_globs_of_the_whole_name(path: Path, clock: FakeClock) -> None:
    """A model goes by its name or by what it is an alias of."""
    key, _ = await (await opened(path, clock)).create("app", ["org/*", "tin?"], None)
    assert [key.permits(*names) for names in (("org/a",), ("tiny",), ("nice", "org/b"))] == [True] * 3
    assert [key.permits(name) for name in ("my/org/a", "tiny2", "other")] == [False] * 3
    with pytest.raises(Forbidden, match=r"'app' is not allowed to use 'other', only org/\*, tin\?"):
        key.require("other")


async def test_a_rate_lets_its_number_in_at_once_and_then_as_time_goes(path: Path, clock: FakeClock) -> None:
    """The bucket fills up to its number and no further; the error says when the next is let in."""
    keys = await opened(path, clock)
    key, _ = await keys.create("app", [], "2/min")
    keys.spend(key)
    keys.spend(key)
    with pytest.raises(RateLimited) as caught:
        keys.spend(key)
    assert caught.value.retry_after_s == 30
    clock.move(30)
    keys.spend(key)
    clock.move(3600)
    keys.spend(key)
    keys.spend(key)
    with pytest.raises(RateLimited):
        keys.spend(key)


@pytest.mark.parametrize("text", ["0/min", "-1/s", "60", "60/m", "1.5/s", "60/min ", "", "99999999/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """The message says how one is written."""
    with pytest.raises(InvalidRequest, match="60/min"):
        Rate.parse(text)


async def test_what_cannot_be_a_key_is_refused_and_nothing_is_written(path: Path, clock: FakeClock) -> None:
    """A name that is none or taken, a pattern that is none, one key too many."""
    keys = await opened(path, clock)
    for name, models in (("", []), ("a b", []), ("../x", []), ("ok", ["[a]"]), ("ok", [""]), ("ok", ["x"] * 101)):
        with pytest.raises(InvalidRequest):
            await keys.create(name, models, None)
    assert text_of(path) == ""
    await keys.create("taken", [], None)
    with pytest.raises(InUse, match="taken"):
        await keys.create("taken", [], None)
    with pytest.raises(NotFound, match="other"):
        await keys.revoke("other")


async def test_there_is_an_end_to_keys(path: Path, clock: FakeClock) -> None:
    """Each is compared at every request."""
    keys = await opened(path, clock)
    stored, _ = await keys.create("k", [], None)
    document = {"schema": 1, "keys": [{**stored.render(), "name": f"k{number}"} for number in range(MOST_KEYS)]}
    write(path, json.dumps(document))
    keys = await opened(path, clock)
    with pytest.raises(InUse, match=str(MOST_KEYS)):
        await keys.create("more", [], None)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2, "keys": []}', '{"schema": 1, "keys": [{"name": "a"}]}'])
async def test_a_file_that_is_none_lets_nobody_in(path: Path, clock: FakeClock, text: str) -> None:
    """Nobody can tell who may; the owner's tools may all the same, and the file is not written over."""
    write(path, text)
    keys = await opened(path, clock)
    with pytest.raises(FileInvalid, match="no HTTP request is let in"):
        keys.authenticate("anything")
    assert keys.authenticate(keys.boot_token) is None
    with pytest.raises(FileInvalid):
        await keys.create("app", [], None)
    assert text_of(path) == text


async def test_a_disk_that_takes_nothing_changes_nothing(tmp_path: Path, clock: FakeClock) -> None:
    """No key is given out that the next daemon would not know."""
    keys = ApiKeys(AtomicFile(tmp_path / "nowhere" / "apikeys.json"), clock.now)
    await keys.open()
    with pytest.raises(CommitFailed, match="nothing is changed"):
        await keys.create("app", [], None)
    assert not keys.is_required
