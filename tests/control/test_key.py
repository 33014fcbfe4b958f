"""`key.*` over the socket: where keys are kept, who uses them, and that they never come out again."""

from __future__ import annotations

import stat
from typing import Any

import pytest

from tests.support.control import Client, Plane
from tests.support.keychain import memory_keychain
from tests.support.upstream import upstream

SECRET = "sk-never-to-be-seen-3141"


async def add_provider(client: Client, **params: Any) -> None:
    """Add the provider of these tests."""
    await client.ask("cloud.provider.add", id="p", base_url="https://host/v1", **params)


async def test_a_key_is_kept_in_a_file_where_there_is_no_keychain(plane: Plane, client: Client) -> None:
    """Only its owner may read it, and the provider's reference leads to it from the same commit on."""
    await add_provider(client)
    reply = await client.ask("key.set", name="p", secret=f"{SECRET}\n", provider="p")
    path = plane.home.secrets / "p"
    assert (reply["auth"], reply["providers"], len(reply["changed"])) == ("file:secrets/p", ["p"], 1)
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    auth = plane.store.current.cloud.providers["p"].auth
    assert await plane.secrets.read("p", auth) == SECRET
    assert (await client.ask("cloud.provider.show", id="p"))["key_problem"] is None
    assert (await client.ask("key.list"))["keys"] == [
        {"name": "p", "auth": "file:secrets/p", "providers": ["p"], "problem": None}
    ]


async def test_a_key_is_kept_in_the_keychain_where_there_is_one(plane: Plane, client: Client) -> None:
    """The folder remembers its name alone; a locked keychain is said, and a new key goes into a file."""
    await add_provider(client)
    with memory_keychain() as keychain:
        assert (await client.ask("key.set", name="p", secret=SECRET, provider="p"))["auth"] == "keychain:mlxd/p"
        assert keychain.entries == {("mlxd", "p"): SECRET}
        assert [(path.name, path.read_bytes()) for path in plane.home.secrets.iterdir()] == [("p.keychain", b"")]
        assert await plane.secrets.read("p", plane.store.current.cloud.providers["p"].auth) == SECRET
        keychain.is_locked = True
        (shown,) = (await client.ask("key.list"))["keys"]
        assert "KeyringLocked" in shown["problem"]
        assert (await client.ask("key.set", name="q", secret=SECRET))["auth"] == "file:secrets/q"
        keychain.is_locked = False
        await client.ask("key.remove", name="p", frame=None, force=True)
        assert keychain.entries == {}


@pytest.mark.parametrize(("verb", "params"), [("key.remove", {"force": True}), ("key.set", {"secret": SECRET})])
async def test_a_key_that_a_locked_keychain_holds_is_not_forgotten(
    plane: Plane, client: Client, verb: str, params: dict[str, Any]
) -> None:
    """It would stay in there unknown to anybody: nothing changes, and the error says why."""
    with memory_keychain() as keychain:
        await client.ask("key.set", name="p", secret=SECRET)
        keychain.is_locked = True
        error = await client.refused(verb, name="p", **params)
        assert (error["code"], "KeyringLocked" in error["msg"]) == ("config.commit_failed", True)
        assert [path.name for path in plane.home.secrets.iterdir()] == ["p.keychain"]
        keychain.is_locked = False
        keychain.entries.clear()
        await client.ask("key.remove", name="p", force=True)
        assert list(plane.home.secrets.iterdir()) == []


async def test_a_key_in_use_is_not_removed(plane: Plane, client: Client) -> None:
    """Its users are named; by force it goes, and what that means is a problem that status shows."""
    await add_provider(client)
    await client.ask("key.set", name="p", secret=SECRET, provider="p")
    error = await client.refused("key.remove", name="p")
    assert (error["code"], "used by p" in error["msg"]) == ("in_use", True)
    assert (await client.ask("key.remove", {"dry": True}, name="p", force=True))["dry_run"] is True
    assert (plane.home.secrets / "p").exists()
    await client.ask("key.remove", name="p", force=True)
    assert not (plane.home.secrets / "p").exists()
    assert any("secrets/p" in problem for problem in (await client.ask("status"))["problems"])
    assert (await client.refused("key.remove", name="p"))["code"] == "not_found"


@pytest.mark.parametrize("has_keychain", [False, True])
async def test_a_key_that_is_not_committed_leaves_the_one_before(
    plane: Plane, client: Client, has_keychain: bool
) -> None:
    """A settings file that is not valid refuses the change; the key before is back, or there is none."""
    await add_provider(client)
    await client.ask("key.set", name="old", secret="sk-before", provider="p")
    text = plane.home.config.read_text()
    plane.home.config.write_text(f"{text}\nnonsense")
    with memory_keychain() as keychain:
        if not has_keychain:
            keychain.priority = 0
        for name in ("old", "new"):
            assert SECRET not in str(await client.refused("key.set", name=name, secret=SECRET, provider="p"))
        assert keychain.entries == ({("mlxd", "old"): "sk-before"} if has_keychain else {})
        plane.home.config.write_text(text)
        assert [key["name"] for key in (await client.ask("key.list"))["keys"] if key["name"]] == ["old"]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"name": "../x", "secret": SECRET}, "letters, digits"),
        ({"name": SECRET * 4, "secret": SECRET}, "letters, digits"),
        ({"name": "x.keychain", "secret": SECRET}, "letters, digits"),
        ({"name": "x", "secret": f"{SECRET}\n{SECRET}"}, "in one line"),
        ({"name": "x", "secret": " \n"}, "printable"),
        ({"name": "x", "secret": f"{SECRET}ü"}, "ASCII"),
        ({"name": "x", "secret": SECRET, "provider": "nope"}, "no provider 'nope'"),
    ],
)
async def test_what_cannot_be_a_key(plane: Plane, client: Client, params: dict[str, Any], words: str) -> None:
    """It is refused without being repeated, and nothing is kept."""
    error = await client.refused("key.set", **params)
    assert words in error["msg"]
    assert SECRET not in str(error)
    assert not plane.home.secrets.exists()


async def test_a_dry_run_keeps_nothing(plane: Plane, client: Client) -> None:
    """It says that it was one."""
    assert (await client.ask("key.set", {"dry": True}, name="x", secret=SECRET))["dry_run"] is True
    assert not plane.home.secrets.exists()


async def test_a_new_key_counts_at_once(plane: Plane, client: Client) -> None:
    """A provider that had refused the old one is asked again with the new one."""
    async with upstream() as far:
        await client.ask("cloud.provider.add", id="p", base_url=far.url)
        await client.ask("key.set", name="p", secret="sk-old", provider="p")
        far.behaviour, far.status = "refuse", 401
        await client.ask("cloud.provider.test", id="p")
        assert (await client.ask("status"))["cloud"]["refused"] == ["p"]
        far.behaviour = "answer"
        await client.ask("key.set", name="p", secret=SECRET)
        assert (await client.ask("status"))["cloud"]["refused"] == []
        assert (await client.ask("cloud.provider.test", id="p"))["ok"]
        assert [seen.headers["Authorization"] for seen in far.seen] == ["Bearer sk-old", f"Bearer {SECRET}"]
