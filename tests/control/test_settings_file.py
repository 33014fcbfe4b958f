"""`settings.*` about the whole file and about what is runtime-only, over the socket."""

import hashlib
from typing import Any

import pytest

from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.paths import Home
from tests.support.control import CONFIG, Client, Plane, running_plane

NOW = {"persist": False}


async def test_runtime_only_is_said_and_shown(plane: Plane, client: Client) -> None:
    """The reply says so, get and list tell overlay, file with its line, and default apart, status names the keys."""
    reply = await client.ask("settings.set", NOW, changes={"pool.memory": "12MB"})
    assert (reply["runtime_only"], reply["rewritten"], reply["gen"]) == (True, False, 2)
    assert reply["memory"]["limit_bytes"] == 12 * 10**6
    assert plane.home.config.read_text() == CONFIG
    shown = await client.ask("settings.get", key="pool.memory")
    assert (shown["origin"], shown["written"], shown["saved"], shown["line"]) == ("overlay", "12MB", "16MB", None)
    listed = await client.ask("settings.list")
    origins = {shown["key"]: (shown["origin"], shown["line"]) for shown in listed["settings"]}
    assert origins["catalog.paths"] == ("file", 5)
    assert origins["pool.policy"] == ("default", None)
    assert listed["overlay"] == ["pool.memory"]
    assert listed["path"] == str(plane.home.config)
    assert (await client.ask("status"))["config"]["overlay"] == ["pool.memory"]
    reply = await client.ask("settings.set", NOW, changes={"pool.memory": None})
    assert reply["changed"] == [{"key": "pool.memory", "old": "12MB", "new": "16MB"}]


async def test_every_verb_that_changes_settings_can_be_runtime_only(plane: Plane, client: Client) -> None:
    """Pins, lists, rules: live, and the file is as it was."""
    await client.ask("model.pin", NOW, model="a")
    await client.ask("preload.add", NOW, model="b")
    await client.ask("cloud.enable", NOW)
    await client.ask("cloud.provider.add", NOW, id="p", base_url="https://host/v1")
    await client.ask("cloud.rule.add", NOW, id="r", match="x", mode="always", to=["p/x"])
    settings = plane.store.current
    assert (settings.models["a"].pin, settings.pool.preload, settings.cloud.enabled) == (True, ("b",), True)
    assert settings.cloud.rules["r"].to == ("p/x",)
    assert plane.home.config.read_text() == CONFIG
    assert "runtime-only" in (await client.refused("cloud.rule.remove", id="r"))["hint"]
    await client.ask("cloud.rule.remove", NOW, id="r")
    await client.ask("model.unpin", NOW, model="a")
    assert not plane.store.current.cloud.rules
    assert plane.store.state.overlay.keys() == ["pool.preload", "cloud.enabled", "cloud.providers.p.base_url"]


async def test_a_saved_unpin_is_stronger_than_a_pin_for_now(plane: Plane, client: Client) -> None:
    """What is saved clears the overlay of its key, and says what changed."""
    await client.ask("model.pin", NOW, model="a")
    reply = await client.ask("model.unpin", model="a")
    assert reply["changed"] == [{"key": "models.a.pin", "old": True, "new": False}]
    assert not plane.store.state.overlay


@pytest.mark.parametrize("operation", [row.name for row in OPERATIONS.values() if not row.can_be_runtime_only])
async def test_what_cannot_be_runtime_only_says_so(client: Client, operation: str) -> None:
    """A key of the frame that would be ignored is refused."""
    examples: dict[str, Any] = {"TEXT": "x", "COUNT": 1, "INTEGER": 1, "BOOLEAN": True, "TEXTS": [], "TOML": ""}
    params = {name: examples.get(param.type.name, {}) for name, param in OPERATIONS[operation].params.items()}
    assert (await client.refused(operation, NOW, **params))["field"] == "persist"


async def test_read_and_apply(plane: Plane, client: Client) -> None:
    """What is read can be applied with its digest; with the digest of another file it is a conflict."""
    shown = await client.ask("settings.read")
    assert (shown["text"], shown["exists"], shown["gen"]) == (CONFIG, True, 1)
    assert shown["sha256"] == hashlib.sha256(CONFIG.encode()).hexdigest()
    text = CONFIG.replace("16MB", "12MB") + "# more\n"
    reply = await client.ask("settings.apply", {"if_gen": 1}, text=text, base=shown["sha256"])
    assert (reply["rewritten"], reply["gen"]) == (True, 2)
    assert plane.home.config.read_text() == text
    error = await client.refused("settings.apply", text=CONFIG, base=shown["sha256"])
    assert (error["code"], error["exit"]) == ("config.conflict", 5)
    error = await client.refused("settings.apply", text="[pool]\nmemory = 7\n")
    assert (error["code"], error["exit"]) == ("config.file_invalid", 10)
    assert plane.home.config.read_text() == text


async def test_history_diff_and_rollback(plane: Plane, client: Client) -> None:
    """Each generation has its source and keys; two are compared; going back is a generation of its own."""
    await client.ask("settings.set", changes={"pool.memory": "12MB"})
    await client.ask("preload.add", NOW, model="a")
    plane.home.config.write_text(CONFIG + "[queue]\nsize = 5\n")
    await client.ask("settings.reload")
    listed = (await client.ask("settings.history"))["generations"]
    assert [(line["gen"], line["source"], line["changed"], line["runtime_only"]) for line in listed] == [
        (4, "file", ["pool.memory", "queue.size"], False),
        (3, "preload.add", ["pool.preload"], True),
        (2, "settings.set", ["pool.memory"], False),
        (1, "file", [], False),
    ]
    assert [line["current"] for line in listed] == [True, False, False, False]
    found = await client.ask("settings.diff", old=2, new=1)
    assert found["changed"] == [{"key": "pool.memory", "old": "12MB", "new": "16MB"}]
    found = await client.ask("settings.diff", old=1)
    assert found["changed"] == [{"key": "queue.size", "old": 256, "new": 5}]
    dry = await client.ask("settings.rollback", {"dry": True}, gen=2)
    reply = await client.ask("settings.rollback", gen=2)
    assert dry["changed"] == reply["changed"]
    assert reply["changed"] == [
        {"key": "pool.memory", "old": "16MB", "new": "12MB"},
        {"key": "queue.size", "old": 5, "new": 256},
    ]
    assert (reply["gen"], plane.home.config.read_text()) == (5, CONFIG.replace("16MB", "12MB"))
    assert (await client.refused("settings.rollback", gen=3))["exit"] == 4
    assert (await client.refused("settings.diff", new=3))["field"] == "old"


async def test_diff_of_what_is_in_force(plane: Plane, client: Client) -> None:
    """The overlay, an edit that is not taken up yet, and a file that cannot be taken up are told apart."""
    await client.ask("settings.set", NOW, changes={"pool.memory": "12MB"})
    plane.home.config.write_text(CONFIG + "[queue]\nsize = 5\n")
    found = await client.ask("settings.diff")
    assert found["overlay"] == [{"key": "pool.memory", "old": "16MB", "new": "12MB"}]
    assert found["pending"] == [{"key": "queue.size", "old": 256, "new": 5}]
    assert found["problem"] is None
    plane.home.config.write_text("[pool\n")
    assert (await client.ask("settings.diff"))["problem"]["code"] == "config.file_invalid"


async def test_a_bad_file_at_the_start_is_rolled_back(home: Home) -> None:
    """The hint names the command, which works at once; the broken text is kept, and the reply says where."""
    async with running_plane(home) as plane, await plane.connect() as client:
        await client.ask("settings.set", changes={"pool.memory": "12MB"})
    async with running_plane(home, text="[pool]\nmemory = 7\n") as plane, await plane.connect() as client:
        problem = (await client.ask("status"))["config"]["problem"]
        assert "mlxctl config rollback 2" in problem["hint"]
        assert (await client.refused("settings.set", NOW, changes={"pool.memory": "1MB"}))["exit"] == 10
        reply = await client.ask("settings.rollback", gen=2)
        assert "rejected-" in reply["warnings"][0]
        assert (await client.ask("status"))["problems"] == []
        assert plane.store.current.pool.memory == 12 * 10**6
        assert not plane.store.has_booted_invalid
