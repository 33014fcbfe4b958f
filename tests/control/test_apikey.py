"""`apikey.*` on the control socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd.protocol.errors import Unauthenticated
from mlxd.protocol.paths import Home
from tests.support.control import running_plane


async def test_a_key_is_shown_once(tmp_path: Path) -> None:
    """In the reply that made it; lists, events and the file do without."""
    async with running_plane(Home(tmp_path)) as plane, await plane.connect() as client:
        made = await client.ask("apikey.create", name="app", models=["org/*"], rate="60/min")
        listed = await client.ask("apikey.list")
        secret = made["key"]
        assert plane.api_keys.authenticate(secret) is not None
        assert made["is_first"]
        assert [key["name"] for key in listed["keys"]] == ["app"]
        assert secret not in str(listed) + plane.home.api_keys.read_text()


async def test_the_hello_lets_the_owners_tools_in(tmp_path: Path) -> None:
    """With the token of this boot."""
    async with running_plane(Home(tmp_path)) as plane, await plane.connect() as client:
        await client.ask("apikey.create", name="app")
        assert plane.api_keys.authenticate(client.hello["http_token"]) is None


async def test_a_rollback_of_the_settings_brings_no_key_back(tmp_path: Path) -> None:
    """Keys are no settings."""
    async with running_plane(Home(tmp_path)) as plane, await plane.connect() as client:
        secret = (await client.ask("apikey.create", name="app"))["key"]
        await client.ask("apikey.create", name="other")
        await client.ask("settings.set", changes={"pool.max_models": 5})
        await client.ask("apikey.revoke", name="app")
        await client.ask("settings.set", changes={"pool.max_models": 6})
        await client.ask("settings.rollback", gen=1)
        with pytest.raises(Unauthenticated):
            plane.api_keys.authenticate(secret)


async def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    """A rate, a name that is taken, a key that is not there, a file that is none."""
    async with running_plane(Home(tmp_path)) as plane, await plane.connect() as client:
        assert (await client.refused("apikey.create", name="app", rate="often"))["field"] == "rate"
        assert (await client.refused("apikey.revoke", name="app"))["code"] == "not_found"
        await client.ask("apikey.create", name="app")
        assert (await client.refused("apikey.create", name="app"))["code"] == "in_use"
        plane.home.api_keys.write_text("{")
        await plane.api_keys.open()
        assert (await client.refused("apikey.list"))["code"] == "apikeys.file_invalid"


async def test_a_secret_is_answered_once_and_kept_nowhere(tmp_path: Path) -> None:
    """Who asks again with the same idempotency key learns that the key was made; the memory has the secret no more."""
    async with running_plane(Home(tmp_path)) as plane, await plane.connect() as client:
        first = await client.ask("apikey.create", {"idem": "k"}, name="app")
        again = await client.ask("apikey.create", {"idem": "k"}, name="app")
        assert (again["name"], "key" in again) == ("app", False)
        assert [key["name"] for key in (await client.ask("apikey.list"))["keys"]] == ["app"]
        kept = plane.server.dispatcher.mutations._kept["k"]
        assert first["key"] not in repr(kept.task.result())
        plane.api_keys.authenticate(first["key"])
