"""`settings.*` over the socket: read, changed, refused, moved to and fro."""

import math
import tomllib
from typing import Any

import pytest

from mlxd.control.handlers import HANDLERS
from mlxd.engine.base import GenerationRequest, TextPrompt
from mlxd.protocol.errors import RequestCancelled
from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.paths import Home
from mlxd.protocol.table import rows
from tests.support.control import CONFIG, Client, Plane, running_plane, until


def test_every_operation_has_a_handler_and_no_handler_is_left_over() -> None:
    """The table that mlxctl knows is the table that the daemon serves."""
    assert HANDLERS.keys() == OPERATIONS.keys()


async def test_one_setting(client: Client) -> None:
    """The value in force, what stands in the file, the default and where it comes from are told apart."""
    shown = await client.ask("settings.get", key="pool.memory")
    assert (shown["value"], shown["written"], shown["default"], shown["origin"]) == (16 * 10**6, "16MB", "auto", "file")
    assert shown["live"] is True
    assert shown["help"].endswith(".")
    assert (await client.ask("settings.get", key="pool.keep_alive"))["origin"] == "default"


async def test_a_setting_of_a_model_that_the_file_does_not_name(client: Client) -> None:
    """It has its default and no value in force of its own."""
    shown = await client.ask("settings.get", key="models.a.pin")
    assert (shown["value"], shown["written"], shown["origin"]) == (None, False, "default")


async def test_never_is_no_number(client: Client) -> None:
    """JSON has no infinity: what never happens has no value, and is still written `never`."""
    await client.ask("settings.set", changes={"pool.keep_alive": "never"})
    shown = await client.ask("settings.get", key="pool.keep_alive")
    assert (shown["value"], shown["written"]) == (None, "never")


async def test_all_settings(client: Client) -> None:
    """Plain settings are all there; those of keyed tables once per entry."""
    await client.ask("cloud.provider.add", id="p", base_url="https://host/v1", auth_env="KEY")
    listed = {shown["key"]: shown for shown in (await client.ask("settings.list"))["settings"]}
    assert {".".join(path) for path, _ in rows() if "*" not in path} <= listed.keys()
    assert listed["cloud.providers.p.auth"]["value"] == {"env": "KEY"}
    assert listed["catalog.paths"]["value"] == ["models"]
    assert not any(isinstance(shown["value"], float) and math.isinf(shown["value"]) for shown in listed.values())


@pytest.mark.parametrize("key", ["pool.memry", "pool", "pool..memory", 'models."a'])
async def test_an_unknown_setting_is_refused(client: Client, key: str) -> None:
    """Reading what is no setting is an error with its own code."""
    assert (await client.refused("settings.get", key=key))["code"] == "settings.unknown"


async def test_a_change_is_live_saved_and_answered(plane: Plane, client: Client) -> None:
    """The reply has the generation, old and new as written, and the memory; the comments survive."""
    reply = await client.ask("settings.set", changes={"pool.memory": "50%", "pool.max_models": 3})
    assert reply["gen"] == 2
    assert reply["changed"] == [
        {"key": "pool.memory", "old": "16MB", "new": "50%"},
        {"key": "pool.max_models", "old": "none", "new": 3},
    ]
    assert reply["memory"]["limit_bytes"] == 16 * 10**6
    assert (reply["warnings"], reply["dry_run"], "op" in reply) == ([], False, False)
    assert plane.home.config.read_text().startswith('# mine\n[pool]\nmemory = "50%"  # for two\nmax_models = 3\n')
    assert plane.pool.status().max_models == 3


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"pool.memory": "-5GB"}, "settings.invalid_value", "smallest memory limit is 1MB"),
        ({"pool.memory": "500%"}, "settings.invalid_value", "from 1% to 100%"),
        ({"pool.memory": "abc"}, "settings.invalid_value", "from 1% to 100%"),
        ({"pool.max_models": "2", "pool.memory": "64GB"}, "pool.memory_exceeds_usable", "usable memory"),
        ({"pool.memry": "1GB"}, "settings.unknown", "nearest is 'pool.memory'"),
        ({"pool.preload": ["a", "nope"]}, "settings.invalid_value", "nope"),
    ],
)
async def test_refusals_leave_the_file_byte_identical(
    plane: Plane, client: Client, changes: dict[str, Any], code: str, words: str
) -> None:
    """The bound or the nearest name is in the message, and nothing has changed."""
    error = await client.refused("settings.set", changes=changes)
    assert (error["code"], words in error["msg"]) == (code, True)
    assert plane.home.config.read_text() == CONFIG
    assert plane.store.generation == 1


async def test_the_same_value_is_no_change(client: Client) -> None:
    """Nothing is written and no generation is made."""
    reply = await client.ask("settings.set", changes={"pool.memory": "16MB"})
    assert (reply["gen"], reply["changed"]) == (1, [])


async def test_null_unsets(plane: Plane, client: Client) -> None:
    """The line goes and the default holds."""
    await client.ask("settings.set", changes={"pool.memory": None})
    assert "memory" not in plane.home.config.read_text()
    assert plane.store.current.pool.memory == 24 * 10**6


async def test_another_generation_is_a_conflict(plane: Plane, client: Client) -> None:
    """Who has not seen the last change does not overwrite it."""
    error = await client.refused("settings.set", {"if_gen": 5}, changes={"pool.max_models": 3})
    assert (error["code"], error["exit"], error["data"]) == ("config.conflict", 5, {"gen": 1})
    assert (await client.ask("settings.set", {"if_gen": 1}, changes={"pool.max_models": 3}))["gen"] == 2


async def test_many_clients_change_settings_in_turn(plane: Plane) -> None:
    """Each change has a generation of its own, and none undoes another."""
    clients = [await plane.connect() for _ in range(8)]
    for number, client in enumerate(clients):
        await client.send({"t": "req", "id": 1, "m": "preload.add", "p": {"model": ["a", "b", "org/c"][number % 3]}})
    answers = [await client.receive_of("res") for client in clients]
    assert all(answer["ok"] for answer in answers)
    assert sorted(plane.store.current.pool.preload) == ["a", "b", "org/c"]
    assert plane.store.generation == 4
    for client in clients:
        await client.close()


async def test_validate_checks_a_text_and_changes_nothing(plane: Plane, client: Client) -> None:
    """A candidate is judged with file:line:col; without a text the file on disk is."""
    assert (await client.ask("settings.validate"))["valid"] is True
    assert (await client.ask("settings.validate", text="[pool]\nmax_models = 3\n"))["valid"] is True
    error = await client.refused("settings.validate", text="[pool]\nmax_models = 0\n", name="mine.toml")
    assert error["msg"].startswith("mine.toml:2:1: pool.max_models")
    assert error["exit"] == 10
    assert plane.store.generation == 1


async def test_path(plane: Plane, client: Client) -> None:
    """Where the file is, so that a person can edit it."""
    assert await client.ask("settings.path") == {"path": str(plane.home.config), "exists": True}


async def test_reload_takes_an_edit_by_hand_up(plane: Plane, client: Client) -> None:
    """The reply is that of a change; a bad file is refused and left alone."""
    plane.home.config.write_text(CONFIG.replace("16MB", "12MB"))
    reply = await client.ask("settings.reload")
    assert reply["changed"] == [{"key": "pool.memory", "old": "16MB", "new": "12MB"}]
    plane.home.config.write_text("[pool\n")
    assert (await client.refused("settings.reload"))["code"] == "config.file_invalid"
    assert (await client.refused("settings.set", changes={"pool.max_models": 3}))["code"] == "config.file_invalid"
    assert plane.home.config.read_text() == "[pool\n"


async def test_a_bad_file_at_the_start_is_told_and_can_be_mended(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """The control socket comes up and says what is wrong; the fixed file is taken up."""
    caplog.set_level("INFO")
    async with running_plane(home, text="[pool]\nmemory = 7\n") as plane, await plane.connect() as client:
        status = await client.ask("status")
        assert "config.toml:2:1: pool.memory" in status["problems"][0]
        assert "the defaults hold" in status["problems"][0]
        home.config.write_text(CONFIG)
        await client.ask("settings.reload")
        assert any(record.getMessage().startswith("settings generation") for record in caplog.records)
        assert (await client.ask("status"))["problems"] == []
        assert plane.store.current.pool.memory == 16 * 10**6


# What a change moves.


async def load(client: Client, *models: str) -> None:
    """Load models and wait for them."""
    for model in models:
        await client.wait((await client.ask("model.load", model=model))["op"])


async def test_a_lowered_limit_names_its_victims_before_it_is_done(plane: Plane, client: Client) -> None:
    """The reply names who is evicted, with bytes; the operation ends when the memory is free."""
    await load(client, "a", "b")
    plane.backend.unload_s = 0.05
    reply = await client.ask("settings.set", changes={"pool.memory": "3MB"})
    assert [victim["id"] for victim in reply["evicting"]] == ["a"]
    assert reply["evicting"][0]["bytes"] > 10**6
    assert plane.state("a") == "unloading"
    operation = await client.wait(reply["op"])
    assert (operation["state"], operation["result"]) == ("done", {"models": ["a"]})
    assert (plane.state("a"), plane.state("b")) == ("unloaded", "ready")


async def test_a_dry_run_names_the_victims_and_moves_nothing(plane: Plane, client: Client) -> None:
    """The same words as the real change, and the models stay."""
    await load(client, "a", "b")
    reply = await client.ask("settings.set", {"dry": True}, changes={"pool.memory": "3MB"})
    assert [victim["id"] for victim in reply["evicting"]] == ["a"]
    assert reply["dry_run"] is True
    assert "op" not in reply
    assert plane.home.config.read_text() == CONFIG
    assert (plane.state("a"), plane.state("b")) == ("ready", "ready")


async def test_a_busy_victim_drains_and_the_reply_does_not_wait(plane: Plane, client: Client) -> None:
    """The limit holds at once, the model goes when its request has ended."""
    await load(client, "a")
    async with plane.pool.lease("a", request_id="r"):
        reply = await client.ask("settings.set", changes={"pool.memory": "1MB"})
        assert [(model["id"], model["requests"]) for model in reply["draining"]] == [("a", 1)]
        assert reply["over_limit"]
        assert tomllib.loads(plane.home.config.read_text())["pool"]["memory"] == "1MB"
        assert plane.state("a") == "draining"
    assert (await client.wait(reply["op"]))["state"] == "done"
    assert plane.state("a") == "unloaded"


async def test_a_drain_that_takes_too_long_is_told_and_goes_on(plane: Plane, client: Client) -> None:
    """After pool.drain_timeout the operation ends with exit 7 and says who is busy."""
    await load(client, "a")
    await client.ask("settings.set", changes={"pool.drain_timeout": "10ms"})
    async with plane.pool.lease("a", request_id="r"):
        operation = await client.wait((await client.ask("settings.set", changes={"pool.memory": "1MB"}))["op"])
        assert operation["state"] == "failed"
        assert (operation["error"]["code"], operation["error"]["exit"]) == ("wait_ended", 7)
        assert "a" in operation["error"]["msg"]
        assert plane.state("a") == "draining"
    await until(lambda: plane.state("a") == "unloaded")


async def test_force_ends_what_the_drain_timeout_could_not(plane: Plane, client: Client) -> None:
    """With force, requests that outlast pool.drain_timeout are ended with an error, and the model goes."""
    await load(client, "a")
    await client.ask("settings.set", changes={"pool.drain_timeout": "10ms"})
    request = GenerationRequest(TextPrompt("hello"))
    async with plane.pool.lease("a", request_id="r") as lease:
        prompt = await lease.prepare(request)
        stream = lease.generate(request, prompt)
        await anext(stream)
        reply = await client.ask("settings.set", changes={"pool.memory": "1MB"}, force=True)
        with pytest.raises(RequestCancelled, match="by force"):
            [event async for event in stream]
    assert (await client.wait(reply["op"]))["state"] == "done"
    assert plane.state("a") == "unloaded"


async def test_a_load_that_takes_too_long_is_told_and_goes_on(plane: Plane, client: Client) -> None:
    """After pool.load_timeout the operation of a changed list ends with exit 7; the load goes on."""
    plane.backend.hold_loads(hold=True)
    await client.ask("settings.set", changes={"pool.load_timeout": "1s", "pool.drain_timeout": "0s"})
    operation = await client.wait((await client.ask("preload.set", models=["a"]))["op"])
    assert (operation["error"]["code"], operation["error"]["exit"]) == ("wait_ended", 7)
    assert "still loading" in operation["error"]["msg"]
    plane.backend.hold_loads(hold=False)
    await until(lambda: plane.state("a") == "ready")


async def test_a_pinned_sum_over_the_limit_needs_force(plane: Plane, client: Client) -> None:
    """Refused with exit 6 and the pins; forced, the pins stay and the reply warns."""
    await load(client, "a")
    await client.ask("model.pin", model="a")
    error = await client.refused("settings.set", changes={"pool.memory": "1MB"})
    assert (error["code"], error["exit"]) == ("pool.pinned_exceeds_limit", 6)
    assert "a" in error["msg"]
    reply = await client.ask("settings.set", changes={"pool.memory": "1MB"}, force=True)
    assert any("pinned" in warning for warning in reply["warnings"])
    assert plane.state("a") == "ready"


async def test_a_restart_comes_up_with_the_same_settings(home: Home) -> None:
    """Another daemon on the same home has the generation, the limit and the list."""
    async with running_plane(home) as plane, await plane.connect() as client:
        await client.ask("settings.set", changes={"pool.memory": "12MB"})
        await client.ask("preload.set", models=["b"])
        before = plane.store.current
    async with running_plane(home, text=None) as plane, await plane.connect() as client:
        assert plane.store.current == before
        assert client.hello["gen"] == 3


async def test_other_catalog_paths_are_searched_at_once(plane: Plane, client: Client, tmp_path: Any) -> None:
    """A folder that is added shows its models without a restart; one that is not there is warned of."""
    reply = await client.ask("settings.set", changes={"catalog.paths": ["models", str(tmp_path / "gone")]})
    assert any("gone is not there now" in warning for warning in reply["warnings"])
    plane.home.models.rename(tmp_path / "more")
    await client.ask("settings.set", changes={"catalog.paths": [str(tmp_path / "more")]})
    await until(lambda: {str(entry.path.parent) for entry in plane.catalog.entries()} >= {str(tmp_path / "more")})


async def test_a_duration_without_a_unit_is_refused(plane: Plane, client: Client) -> None:
    """Nobody guesses whether 30 are seconds or minutes; nothing, and what an older file says, has no unit to miss."""
    error = await client.refused("settings.set", changes={"pool.keep_alive": "30"})
    assert error["msg"] == "pool.keep_alive: '30' has no unit; expected a duration such as 30s, 30m or 1h30m"
    error = await client.refused("model.set", model="a", changes={"keep_alive": "5"})
    assert "'5' has no unit" in error["msg"]
    await client.ask("settings.set", changes={"pool.keep_alive": "0"})
    assert plane.store.current.pool.keep_alive == 0
    plane.home.config.write_text('[pool]\nkeep_alive = "45"\nevict_patience = 20\n')
    await client.ask("settings.reload")
    assert (plane.store.current.pool.keep_alive, plane.store.current.pool.evict_patience) == (45, 20)
