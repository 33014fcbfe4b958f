"""`model.set`, `model.reset` and `model.alias.*`, and how a running plane follows names, adapters and files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mlxd.protocol.errors import LoadFailed
from tests.support.adapter import write_adapter
from tests.support.control import Client, Plane, until
from tests.support.model_folder import LLAMA_CONFIG, write_model


async def load(client: Client, model: str) -> None:
    """Load a model and wait for it."""
    reply = await client.ask("model.load", model=model)
    if "op" in reply:
        assert (await client.wait(reply["op"]))["state"] == "done"


async def context_of(client: Client, model: str) -> int:
    """Return the context that a model has."""
    shown = await client.ask("model.show", model=model)
    tokens: int = shown["context_length"]
    return tokens


async def test_set_changes_a_model_as_one(plane: Plane, client: Client) -> None:
    """All or none; null takes a value back; the file keeps its comments."""
    changes = {"temperature": "0", "top_k": 5, "keep_alive": "never"}
    reply = await client.ask("model.set", model="org/c", changes=changes)
    keys = ["temperature", "top_k", "keep_alive"]
    assert sorted(change["key"] for change in reply["changed"]) == sorted(f'models."org/c".{key}' for key in keys)
    shown = await client.ask("model.show", model="org/c")
    assert shown["sampling"] == {"temperature": 0.0, "top_k": 5}
    error = await client.refused("model.set", model="org/c", changes={"top_p": "0.5", "min_p": "7"})
    assert "7 is out of bounds; it must be a number from 0 to 1" in error["msg"]
    assert plane.store.current.models["org/c"].top_p is None
    await client.ask("model.set", model="org/c", changes={"temperature": None})
    assert plane.store.current.models["org/c"].sampling == {"top_k": 5}
    assert "# for two" in plane.home.config.read_text()


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"model": "a"}, "invalid_request", "nothing to set"),
        ({"model": "aa", "changes": {"pin": True}}, "model_not_found", "the nearest names are a"),
        ({"model": "a", "changes": {"tempature": 1}}, "settings.unknown", "the nearest is 'models.a.temperature'"),
        ({"model": "a", "changes": {"context_length": 4096}}, "settings.invalid_value", "own context of 2048"),
        ({"model": "a", "changes": {"context_length": 0}}, "settings.invalid_value", "from 1 to"),
        ({"model": "a", "changes": {"pin": True}, "reload": "soon"}, "invalid_request", "one of idle, now, next-load"),
        ({"model": "a+x", "changes": {"adapter": "none"}}, "model_not_found", "a+x"),
        ({"model": "a+x", "changes": {"adapter": "x"}, "reload": "now"}, "invalid_request", "not there yet"),
    ],
)
async def test_what_set_refuses(client: Client, params: dict[str, Any], code: str, words: str) -> None:
    """The error says why, and nothing has changed."""
    error = await client.refused("model.set", **params)
    assert error["code"] == code
    assert words in error["msg"]
    assert (await client.ask("settings.get", key="models.a.pin"))["value"] in {None, False}


async def test_a_context_that_yarn_stretches(plane: Plane, client: Client) -> None:
    """A model takes its own context by itself, and up to the factor of its rope_scaling where that is set."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    write_model(plane.home.models / "long", dict(LLAMA_CONFIG) | {"rope_scaling": scaling})
    await client.ask("catalog.rescan")
    assert await context_of(client, "long") == 2048
    await client.ask("model.set", model="long", changes={"context_length": 8192})
    assert await context_of(client, "long") == 8192
    error = await client.refused("model.set", model="long", changes={"context_length": 8193})
    assert "8193 is more than the model's own context of 2048 tokens, which can be stretched to 8192" in error["msg"]


async def test_more_context_than_its_own_by_force(plane: Plane, client: Client) -> None:
    """Forced, it is a warning: what the catalog reads of a model may be wrong."""
    reply = await client.ask("model.set", model="a", changes={"context_length": 9999}, force=True)
    assert any("own context of 2048" in warning for warning in reply["warnings"])
    await load(client, "a")
    assert plane.backend.engines[0].spec.context_length == 9999  # which the engine cuts


async def test_a_loaded_model_takes_up_its_context(plane: Plane, client: Client) -> None:
    """An idle one at once, as an operation that can be waited for."""
    await load(client, "a")
    plane.backend.hold_loads(hold=True)
    reply = await client.ask("model.set", model="a", changes={"context_length": 100})
    assert [(stale["id"], stale["reload"]) for stale in reply["stale"]] == [("a", "idle")]
    plane.backend.hold_loads(hold=False)
    assert (await client.wait(reply["op"]))["state"] == "done"
    assert await context_of(client, "a") == 100
    assert plane.backend.calls == ["load a", "unload a", "load a"]


async def test_next_load_for_this_once_then_now(plane: Plane, client: Client) -> None:
    """`reload` holds for one change and is no setting; later it brings the reload about with nothing to change."""
    await load(client, "a")
    reply = await client.ask("model.set", model="a", changes={"context_length": 100}, reload="next-load")
    assert "op" not in reply
    models = {model["id"]: model for model in (await client.ask("ps"))["models"]}
    assert "100 tokens instead of" in models["a"]["stale"]
    assert plane.store.current.models["a"].reload == "idle"
    plane.backend.hold_loads(hold=True)
    reply = await client.ask("model.set", model="a", reload="now")
    assert (reply["changed"], reply["stale"][0]["reload"]) == ([], "now")
    plane.backend.hold_loads(hold=False)
    await client.wait(reply["op"])
    assert plane.backend.calls == ["load a", "unload a", "load a"]


async def test_a_refused_change_leaves_the_reload_mode(plane: Plane, client: Client) -> None:
    """The mode of a change that did not happen does not linger."""
    await load(client, "a")
    await client.refused("model.set", model="a", changes={"context_length": 0}, reload="next-load")
    await client.ask("model.set", model="a", changes={"context_length": 100})
    await until(lambda: len(plane.backend.calls) == 3)


async def test_a_dry_run_names_what_would_be_stale(plane: Plane, client: Client) -> None:
    """And begins nothing."""
    await load(client, "a")
    reply = await client.ask("model.set", {"dry": True}, model="a", changes={"context_length": 99}, reload="now")
    assert (reply["dry_run"], [stale["id"] for stale in reply["stale"]], "op" in reply) == (True, ["a"], False)
    assert plane.backend.calls == ["load a"]


async def test_reset_ends_the_backoff(plane: Plane, client: Client) -> None:
    """A model that has failed is tried at the next request, under its alias as well."""
    await client.ask("model.alias.add", model="a", alias="small")
    plane.backend.fail_load("a", LoadFailed("the disk was away"))
    await client.wait((await client.ask("model.load", model="a"))["op"])
    assert plane.state("a") == "failed"
    assert await client.ask("model.reset", model="small") == {"model": "a", "reset": True}
    assert plane.state("a") == "unloaded"
    assert await client.ask("model.reset", model="a") == {"model": "a", "reset": False}


async def test_aliases_come_and_go(plane: Plane, client: Client) -> None:
    """A name leads to its model everywhere at once; the last one leaves nothing behind in the file."""
    await client.ask("model.alias.add", model="a", alias="gpt-4o")
    await client.ask("model.alias.add", model="gpt-4o", alias="small")
    assert (await client.ask("model.alias.add", model="a", alias="small"))["changed"] == []
    listed = (await client.ask("model.alias.list"))["aliases"]
    assert [(alias["alias"], alias["model"], alias["problem"]) for alias in listed] == [
        ("gpt-4o", "a", None),
        ("small", "a", None),
    ]
    await load(client, "gpt-4o")
    shown = await client.ask("model.show", model="small")
    assert (shown["id"], shown["state"], shown["aliases"]) == ("a", "ready", ["gpt-4o", "small"])
    await client.ask("model.pin", model="small")
    assert plane.store.current.models["a"].pin
    await client.ask("model.unpin", model="small")
    await client.ask("preload.add", model="small")
    assert plane.store.current.pool.preload == ("a",)
    await client.ask("preload.remove", model="small")
    await client.wait((await client.ask("model.unload", model="gpt-4o"))["op"])
    for alias in ("gpt-4o", "small"):
        await client.ask("model.alias.remove", alias=alias)
    assert "aliases" not in plane.home.config.read_text().split("# mine")[1]
    assert (await client.refused("model.show", model="small"))["code"] == "model_not_found"
    assert (await client.refused("model.alias.remove", alias="small"))["code"] == "not_found"


@pytest.mark.parametrize(
    ("model", "alias", "words"),
    [
        ("a", "b", "'b' is the id of a model on this disk"),
        ("b", "taken", "'taken' is an alias of 'a' already"),
        ("a", "a", "'a' is the id of a model"),
        ("a", " x", "cannot be the name"),
    ],
)
async def test_an_alias_that_would_mean_two_things(client: Client, model: str, alias: str, words: str) -> None:
    """Refused, with the name that has it."""
    await client.ask("model.alias.add", model="a", alias="taken")
    error = await client.refused("model.alias.add", model=model, alias=alias)
    assert (error["code"], error["exit"]) == ("settings.invalid_value", 10)
    assert words in error["msg"]


async def test_a_model_that_comes_with_the_name_of_an_alias(plane: Plane, client: Client) -> None:
    """The model goes before, and status and the list of aliases say so."""
    await client.ask("model.alias.add", model="a", alias="late")
    shutil.copytree(plane.home.models / "b", plane.home.models / "late")
    await client.ask("catalog.rescan")
    assert (await client.ask("model.show", model="late"))["id"] == "late"
    assert any("alias 'late' of a is hidden" in problem for problem in (await client.ask("status"))["problems"])
    (alias,) = (await client.ask("model.alias.list"))["aliases"]
    assert "goes before" in alias["problem"]


async def test_rules_look_at_the_name_and_at_its_model(client: Client) -> None:
    """The alias's own rule first, then the model's; a never rule for either keeps it here."""
    await client.ask("cloud.provider.add", id="p", base_url="https://host/v1")
    await client.ask("cloud.rule.add", id="model", match="exact:a", mode="always", to=["p/big"])
    await client.ask("cloud.enable")
    await client.ask("model.alias.add", model="a", alias="fast")
    explained = await client.ask("cloud.rule.explain", model="fast")
    assert (explained["route"], explained["rule"], explained["alias_of"]) == ("cloud", "model", "a")
    await client.ask("cloud.rule.add", id="name", match="prefix:fa", mode="always", to=["p/small"], priority=1)
    assert (await client.ask("cloud.rule.explain", model="fast"))["rule"] == "name"
    await client.ask("cloud.rule.add", id="here", match="exact:a", mode="never")
    explained = await client.ask("cloud.rule.explain", model="fast")
    assert (explained["route"], explained["rule"]) == ("local", "here")


async def test_an_adapter_of_the_settings_is_there_at_once(plane: Plane, client: Client, tmp_path: Path) -> None:
    """The reply to the commit knows it; taken away, it drains and is gone, and its base stays."""
    write_adapter(tmp_path / "x", "a")
    await client.ask("model.set", model="a+x", changes={"adapter": str(tmp_path / "x"), "pin": True})
    shown = await client.ask("model.show", model="a+x")
    assert (shown["base"], shown["source"], shown["problem"]) == ("a", "settings", None)
    await load(client, "a+x")
    assert (plane.state("a"), plane.state("a+x")) == ("ready", "ready")
    await client.ask("settings.set", changes={'models."a+x".adapter': None, 'models."a+x".pin': None})
    await until(lambda: plane.state("a+x") == "unloaded")
    assert plane.state("a") == "ready"
    assert (await client.refused("model.show", model="a+x"))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("model", "path", "words"),
    [
        ("a+x", "nowhere", "there is no folder"),
        ("a+x", "models/b", "there is no adapter_config.json"),
        ("gone+x", "x", "its base model 'gone' is not on this disk"),
        ("new", "x", "an adapter's id is BASE+NAME"),
    ],
)
async def test_an_adapter_that_cannot_be(plane: Plane, client: Client, model: str, path: str, words: str) -> None:
    """Refused when it is set; in a file that was edited by hand, listed with its problem."""
    write_adapter(plane.home.root / "x", "a")
    error = await client.refused("model.set", model=model, changes={"adapter": path})
    assert words in error["msg"]
    reply = await client.ask("settings.set", changes={f'models."{model}".adapter': path}, force=True)
    assert any(words in warning for warning in reply["warnings"])


async def test_files_of_a_loaded_model_that_change(plane: Plane, client: Client) -> None:
    """Two looks in a row that see the same make it stale, and it is loaded again; a change under way waits."""
    await load(client, "a")
    weights = plane.home.models / "a" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    await plane.catalog_sync.look()
    os.utime(weights, ns=(2, 2))
    await plane.catalog_sync.look()
    assert plane.backend.calls == ["load a"]
    await plane.catalog_sync.look()
    await until(lambda: plane.backend.calls == ["load a", "unload a", "load a"])
    await plane.catalog_sync.look()
    await plane.catalog_sync.look()
    assert plane.backend.calls == ["load a", "unload a", "load a"]


async def test_a_loaded_model_that_is_deleted(plane: Plane, client: Client) -> None:
    """It unloads, and is unknown from then on."""
    await load(client, "a")
    shutil.rmtree(plane.home.models / "a")
    await plane.catalog_sync.look()
    await plane.catalog_sync.look()
    await until(lambda: plane.state("a") == "unloaded")
    assert (await client.refused("model.load", model="a"))["code"] == "model_not_found"


async def test_unloading_a_base_names_its_adapters(plane: Plane, client: Client) -> None:
    """What goes along is said."""
    write_adapter(plane.home.models / "style", "a")
    await client.ask("catalog.rescan")
    await load(client, "a+style")
    reply = await client.ask("model.unload", model="a")
    assert [model["id"] for model in reply["unloading"]] == ["a+style", "a"]
    models = {model["id"]: model for model in (await client.ask("ps"))["models"]}
    assert "a+style" not in models or models["a+style"]["state"] == "unloading"
