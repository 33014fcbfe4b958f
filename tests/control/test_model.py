"""`model.*`, `preload.*` and `catalog.rescan` over the socket."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlxctl.view import format_model
from mlxd.atomic_file import AtomicFile
from mlxd.catalog import Catalog
from mlxd.crash import CrashLog, LoadMarks
from mlxd.engine.base import Decoding
from mlxd.protocol.errors import LoadFailed
from mlxd.protocol.paths import Home
from tests.support.control import Client, Plane, running_plane, until
from tests.support.fake_backend import DEFAULT_FACTS
from tests.support.model_folder import write_model, write_repository
from tests.support.vanish import Vanishing


async def load(client: Client, model: str) -> None:
    """Load a model and wait for it."""
    operation = await client.wait((await client.ask("model.load", model=model))["op"])
    assert operation["state"] == "done"


async def test_list_and_show(plane: Plane, client: Client) -> None:
    """Models on disk are listed with their size and their state in the pool."""
    await load(client, "a")
    models = {model["id"]: model for model in (await client.ask("model.list"))["models"]}
    assert list(models) == ["a", "b", "org/c"]
    assert (models["a"]["state"], models["b"]["state"]) == ("ready", "unloaded")
    assert models["b"]["weights_bytes"] > 0
    shown = await client.ask("model.show", model="org/c")
    assert shown["path"] == str(plane.home.models / "org" / "c")
    assert (shown["source"], shown["pinned"], shown["preload"]) == ("mlxd", False, False)
    error = await client.refused("model.show", model="org/d")
    assert (error["code"], error["exit"], error["data"]["nearest"]) == ("model_not_found", 4, ["org/c"])


async def test_show_says_how_a_model_is_decoded(plane: Plane, client: Client) -> None:
    """A model that has been loaded shows how its requests are decoded, and why; before that nobody knows."""
    assert "decoding" not in await client.ask("model.show", model="a")
    reason = "mlx-lm has no batch for the caches of this model"
    facts = replace(DEFAULT_FACTS, decoding=Decoding.ONE_BY_ONE, decoding_reason=reason)
    plane.backend.models["a"] = facts
    await load(client, "a")
    shown = await client.ask("model.show", model="a")
    assert (shown["decoding"], shown["decoding_reason"]) == ("one by one", reason)
    assert f"decoding reason:    {reason}" in format_model(shown)


async def test_show_says_how_a_model_calls_tools(plane: Plane, client: Client) -> None:
    """Whoever wonders why calls are bad sees that the model was not trained for them."""
    plane.backend.models["a"] = replace(DEFAULT_FACTS, tool_format="generic")
    await load(client, "a")
    assert "tool format:        generic" in format_model(await client.ask("model.show", model="a"))


async def test_load_goes_on_after_its_reply(plane: Plane, client: Client) -> None:
    """The reply has an operation; a waiter sees the progress in bytes, then the end."""
    plane.backend.hold_loads(hold=True)
    reply = await client.ask("model.load", model="a")
    assert (reply["model"], reply["loading"]) == ("a", ["a"])
    await client.send({"t": "req", "id": 50, "m": "op.wait", "p": {"op": reply["op"]}})
    progress = await client.receive_of("prog")
    while progress["total"] == 0:
        progress = await client.receive_of("prog")
    assert (progress["id"], progress["op"], progress["phase"]) == (50, reply["op"], "loading a")
    assert 0 < progress["done"] <= progress["total"]
    plane.backend.hold_loads(hold=False)
    assert (await client.receive_of("res"))["r"]["result"] == {"model": "a", "state": "ready"}
    assert await client.ask("model.load", model="a") == {"model": "a", "state": "ready"}
    assert (await client.ask("op.show", op=reply["op"]))["state"] == "done"
    assert [shown["op"] for shown in (await client.ask("op.list"))["operations"]] == [reply["op"]]


async def test_a_wait_with_a_timeout_ends_with_it(plane: Plane, client: Client) -> None:
    """The operation is still running then, and a client may wait again."""
    plane.backend.hold_loads(hold=True)
    op = (await client.ask("model.load", model="a"))["op"]
    assert (await client.ask("op.wait", op=op, timeout_ms=1))["state"] == "running"
    plane.backend.hold_loads(hold=False)
    assert (await client.wait(op))["state"] == "done"


async def test_a_load_that_fails_tells_its_cause(plane: Plane, client: Client) -> None:
    """The operation has the error of the load."""
    plane.backend.fail_load("a", LoadFailed("the weights are for another model"))
    operation = await client.wait((await client.ask("model.load", model="a"))["op"])
    assert (operation["state"], operation["error"]["code"]) == ("failed", "load_failed")
    assert "another model" in operation["error"]["msg"]


async def test_a_load_that_cannot_begin_is_refused_at_once(plane: Plane, client: Client) -> None:
    """What can never fit is no operation; force overrides the estimate."""
    await client.ask("settings.set", changes={"pool.memory": "1MB"})
    error = await client.refused("model.load", model="a")
    assert (error["code"], error["exit"]) == ("does_not_fit", 6)
    assert (await client.refused("model.load", model="nope"))["exit"] == 4
    operation = await client.wait((await client.ask("model.load", model="a", force=True))["op"])
    assert (operation["state"], plane.state("a")) == ("done", "ready")


async def test_a_load_by_force_names_its_victims(plane: Plane, client: Client) -> None:
    """The reply, and the dry run before it, name the idle model that goes and the busy one with its requests."""
    await client.ask("settings.set", changes={"pool.memory": "5MB", "pool.evict_patience": "0s"})
    for model in ("a", "b"):
        await load(client, model)
    plane.backend.models["org/c"] = replace(DEFAULT_FACTS, weights_bytes=50_000_000)
    plane.pool._state.resident("org/c").facts = plane.backend.models["org/c"]
    assert (await client.refused("model.load", model="org/c"))["code"] == "does_not_fit"
    async with plane.pool.lease("b", request_id="r"):
        planned = await client.ask("model.load", {"dry": True}, model="org/c", force=True)
        assert (plane.state("a"), plane.state("b")) == ("ready", "ready")
        reply = await client.ask("model.load", model="org/c", force=True)
        for said in (planned, reply):
            assert [victim["id"] for victim in said["evicting"]] == ["a"]
            assert [(model["id"], model["requests"]) for model in said["draining"]] == [("b", 1)]
            assert said["over_limit"] == "org/c is loaded by force"
        assert reply["loading"] == ["org/c"]
    assert (await client.wait(reply["op"]))["state"] == "done"
    assert (plane.state("a"), plane.state("b")) == ("unloaded", "unloaded")


async def test_a_load_can_be_given_up(plane: Plane, client: Client) -> None:
    """Its operation ends as cancelled."""
    plane.backend.hold_loads(hold=True)
    op = (await client.ask("model.load", model="a"))["op"]
    await client.ask("op.cancel", op=op)
    assert (await client.wait(op))["state"] == "cancelled"
    plane.backend.hold_loads(hold=False)
    assert (await client.refused("op.cancel", op="op-99"))["code"] == "not_found"


async def test_unload(plane: Plane, client: Client) -> None:
    """An idle model goes at once, a busy one when its request has ended; one that is not loaded is no error."""
    await load(client, "a")
    reply = await client.ask("model.unload", model="a")
    assert [victim["id"] for victim in reply["unloading"]] == ["a"]
    assert (await client.wait(reply["op"]))["result"] == {"model": "a", "was_loaded": True}
    await load(client, "a")
    async with plane.pool.lease("a", request_id="r"):
        reply = await client.ask("model.unload", model="a")
        assert [(model["id"], model["requests"]) for model in reply["draining"]] == [("a", 1)]
    await client.wait(reply["op"])
    assert plane.state("a") == "unloaded"
    assert await client.ask("model.unload", model="b") == {"model": "b"}
    assert (await client.refused("model.unload", model="nope"))["exit"] == 4


async def test_pin_and_unpin_are_settings(plane: Plane, client: Client) -> None:
    """They stand in the file, survive comments, and leave nothing behind."""
    before = plane.home.config.read_text()
    reply = await client.ask("model.pin", model="org/c")
    assert reply["changed"] == [{"key": 'models."org/c".pin', "old": False, "new": True}]
    assert '[models."org/c"]\npin = true\n' in plane.home.config.read_text()
    assert (await client.ask("model.pin", model="org/c"))["changed"] == []
    assert (await client.ask("model.show", model="org/c"))["pinned"] is True
    await client.ask("model.unpin", model="org/c")
    assert plane.home.config.read_text().strip() == before.strip()
    assert (await client.ask("model.unpin", model="org/c"))["changed"] == []
    assert (await client.refused("model.pin", model="nope"))["exit"] == 4
    assert (await client.refused("model.unpin", model="nope"))["exit"] == 4


async def test_a_model_that_has_left_the_disk_can_be_unpinned(plane: Plane, client: Client) -> None:
    """Settings about what is gone can be cleaned up."""
    await client.ask("model.pin", model="a")
    shutil.rmtree(plane.home.models / "a")
    await client.ask("catalog.rescan")
    assert (await client.ask("model.unpin", model="a"))["changed"]


async def test_rescan_says_what_came_and_what_went(plane: Plane, client: Client) -> None:
    """Models that were put there or deleted by hand are noticed."""
    write_model(plane.home.models / "new")
    shutil.rmtree(plane.home.models / "b")
    assert await client.ask("catalog.rescan") == {"models": 3, "added": ["new"], "removed": ["b"]}


async def test_remove_deletes_the_files(plane: Plane, client: Client) -> None:
    """The folder goes, an empty folder of its organisation too, and the model is known no more."""
    size = (await client.ask("model.show", model="org/c"))["disk_bytes"]
    reply = await client.ask("model.remove", model="org/c")
    assert reply == {"model": "org/c", "path": str(plane.home.models / "org" / "c"), "freed_bytes": size}
    assert sorted(path.name for path in plane.home.models.iterdir()) == ["a", "b"]
    assert (await client.refused("model.show", model="org/c"))["exit"] == 4


async def test_remove_refuses_what_is_in_use(plane: Plane, client: Client) -> None:
    """Loaded, loading, leased, preloaded and pinned models stay, with the command that would free them."""
    await load(client, "a")
    error = await client.refused("model.remove", model="a")
    assert (error["code"], error["exit"]) == ("in_use", 5)
    assert "mlxctl model unload a" in error["hint"]
    async with plane.pool.lease("a", request_id="r"):
        assert "1 request" in (await client.refused("model.remove", model="a"))["msg"]
    await client.wait((await client.ask("preload.add", model="b"))["op"])
    await client.wait((await client.ask("model.unload", model="b"))["op"])
    assert "mlxctl preload remove b" in (await client.refused("model.remove", model="b"))["hint"]
    await client.ask("model.pin", model="org/c")
    assert "mlxctl model unpin org/c" in (await client.refused("model.remove", model="org/c"))["hint"]
    assert len(plane.catalog.entries()) == 3


async def test_remove_leaves_other_folders_alone(plane: Plane, client: Client, tmp_path: Path) -> None:
    """What belongs to the Hugging Face cache or lies elsewhere is refused, with how to delete it."""
    snapshot = tmp_path / "hub" / "models--org--d" / "snapshots" / "1234"
    write_model(snapshot)
    write_model(tmp_path / "disk" / "e")
    (plane.home.models / "linked").symlink_to(tmp_path / "disk")
    paths = ["models", str(tmp_path / "hub"), str(tmp_path / "disk")]
    await client.ask("settings.set", changes={"catalog.paths": paths})
    await client.ask("catalog.rescan")
    cached = await client.refused("model.remove", model="org/d")
    assert (cached["code"], cached["exit"]) == ("model.not_ours", 8)
    assert "Hugging Face cache" in cached["msg"]
    assert "hf cache rm" in cached["hint"]
    assert "delete that folder by hand" in (await client.refused("model.remove", model="e"))["hint"]
    assert "do not lie in" in (await client.refused("model.remove", model="linked/e"))["msg"]
    assert (tmp_path / "disk" / "e" / "config.json").exists()
    assert snapshot.exists()


async def test_remove_takes_a_link_and_not_what_it_leads_to(plane: Plane, client: Client, tmp_path: Path) -> None:
    """A model folder that is linked into ours is unlinked."""
    write_model(tmp_path / "real")
    (plane.home.models / "link").symlink_to(tmp_path / "real")
    await client.ask("catalog.rescan")
    await client.ask("model.remove", model="link")
    assert not (plane.home.models / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").exists()


async def test_remove_that_fails_deletes_nothing(plane: Plane, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses, the model is whole and still listed."""

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    error = await client.refused("model.remove", model="a")
    assert (error["code"], "nothing was deleted" in error["msg"]) == ("config.commit_failed", True)
    assert (await client.ask("model.show", model="a"))["state"] == "unloaded"


async def test_a_deletion_that_was_killed_is_finished_by_the_next(plane: Plane, client: Client) -> None:
    """What was hidden is no model, and goes with the next removal."""
    (plane.home.models / "a").rename(plane.home.models / ".removed-12345678")
    assert (await client.ask("catalog.rescan"))["removed"] == ["a"]
    await client.ask("model.remove", model="b")
    assert [path.name for path in plane.home.models.iterdir()] == ["org"]


# The preload list.


async def test_preload_verbs_edit_the_list(plane: Plane, client: Client) -> None:
    """Add at the end or at a place, move, remove, replace: the file has the list in order."""
    await client.ask("preload.add", model="a")
    await client.ask("preload.add", model="b", at=0)
    assert plane.store.current.pool.preload == ("b", "a")
    assert (await client.ask("preload.add", model="a"))["changed"] == []
    await client.ask("preload.add", model="a", at=0)
    assert plane.store.current.pool.preload == ("a", "b")
    await client.ask("preload.remove", model="a")
    assert 'preload = ["b"]' in plane.home.config.read_text()
    await client.ask("preload.set", models=["org/c", "a"])
    assert plane.store.current.pool.preload == ("org/c", "a")
    await client.ask("preload.set", models=[])
    assert not plane.store.current.pool.preload


async def test_preload_refusals(client: Client) -> None:
    """Unknown models, doubled ones and ones that are not in the list are told apart."""
    assert (await client.refused("preload.add", model="nope"))["exit"] == 4
    assert (await client.refused("preload.remove", model="a"))["code"] == "not_found"
    assert "twice" in (await client.refused("preload.set", models=["a", "a"]))["msg"]
    assert (await client.refused("preload.set", models=["nope"]))["exit"] == 10


async def test_what_is_added_to_the_list_is_loaded(plane: Plane, client: Client) -> None:
    """The reply says what loads; the operation ends when it is there; the list shows its state."""
    reply = await client.ask("preload.set", models=["a", "b"])
    assert reply["loading"] == ["a", "b"]
    assert (await client.wait(reply["op"]))["state"] == "done"
    listed = (await client.ask("preload.list"))["preload"]
    assert [(preload["id"], preload["state"]) for preload in listed] == [("a", "loaded"), ("b", "loaded")]


async def test_a_list_that_cannot_fit_is_refused_with_the_sum(plane: Plane, client: Client) -> None:
    """Exit 6; forced, the tail of the list is deferred."""
    await client.ask("settings.set", changes={"pool.memory": "4MB"})
    error = await client.refused("preload.set", models=["a", "b", "org/c"])
    assert error["exit"] == 6
    reply = await client.ask("preload.set", models=["a", "b", "org/c"], force=True)
    assert reply["deferred"]


async def test_a_removed_preload_stays_until_it_is_unloaded(plane: Plane, client: Client) -> None:
    """Without `unload` it becomes ordinary, with it it goes."""
    for model in ("a", "b"):
        await client.wait((await client.ask("preload.add", model=model))["op"])
    assert "op" not in await client.ask("preload.remove", model="a")
    assert plane.state("a") == "ready"
    operation = await client.wait((await client.ask("preload.remove", model="b", unload=True))["op"])
    assert operation["result"] == {"model": "b", "was_loaded": True}
    assert plane.state("b") == "unloaded"


async def test_a_dry_run_of_a_removal_unloads_nothing(plane: Plane, client: Client) -> None:
    """Neither the list nor the model is touched."""
    await client.wait((await client.ask("preload.add", model="a"))["op"])
    assert "op" not in await client.ask("preload.remove", {"dry": True}, model="a", unload=True)
    assert (plane.store.current.pool.preload, plane.state("a")) == (("a",), "ready")


async def test_a_preloaded_model_is_there_after_a_restart(home: Home) -> None:
    """The list is loaded when the daemon comes up."""
    async with running_plane(home) as plane, await plane.connect() as client:
        await client.ask("preload.set", models=["b"])
    async with running_plane(home, text=None) as plane:
        await until(lambda: plane.state("b") == "ready")


async def test_an_unload_names_the_load_that_it_ends(plane: Plane, client: Client) -> None:
    """A model that still loads is not unloading: its load is stopped, as the dry run said."""
    plane.backend.hold_loads(hold=True)
    await client.ask("model.load", model="a")
    planned = await client.ask("model.unload", {"dry": True}, model="a")
    reply = await client.ask("model.unload", model="a")
    assert [load["id"] for load in reply["aborting"]] == ["a"]
    assert planned["aborting"] == reply["aborting"]
    assert "unloading" not in reply


async def test_reset_lets_a_model_be_tried_at_once(plane: Plane, client: Client) -> None:
    """After a failed load `model.reset` ends its backoff; without a failure it says so."""
    plane.backend.fail_load("a", LoadFailed("bad magic"))
    await client.wait((await client.ask("model.load", model="a"))["op"])
    assert plane.state("a") == "failed"

    assert await client.ask("model.reset", model="a") == {"model": "a", "reset": True}
    assert plane.state("a") == "unloaded"
    assert await client.ask("model.reset", model="a") == {"model": "a", "reset": False}
    assert (await client.refused("model.reset", model="nope"))["code"] == "model_not_found"


async def test_a_model_that_killed_daemons_is_a_problem(home: Home) -> None:
    """`status` names it, with how often; a load by command gets the cause; a reset is kept on the disk."""
    write_model(home.models / "a")
    entry = next(entry for entry in read_catalog(home).entries() if entry.id == "a")
    unfinished = []
    for number in range(2):
        marks = LoadMarks(home.loading, f"boot {number}")
        doomed = CrashLog(AtomicFile(home.state), marks)
        await doomed.open()
        await doomed.begin_load(entry)
        unfinished.append(marks.working_on("a", on_device=True))
        unfinished[-1].__enter__()
    async with running_plane(home) as plane, await plane.connect() as client:
        status = await client.ask("status")
        assert status["crashes"]["last_hour"] == 2
        assert [(load["model"], load["times"]) for load in status["crashes"]["loads"]] == [("a", 2)]
        error = await client.wait((await client.ask("model.load", model="a"))["op"])
        assert error["error"]["code"] == "load_failed"
        assert "the daemon died while it loaded it, 2 times in a row" in error["error"]["msg"]
        assert any("2 times in a row" in problem for problem in (await client.ask("status"))["problems"])
        assert plane.backend.calls == []

        assert (await client.ask("model.reset", model="a"))["reset"]
        await load(client, "a")
        assert (await client.ask("status"))["crashes"]["loads"] == []


def read_catalog(home: Home) -> Catalog:
    """Return what lies in the home."""
    catalog = Catalog([home.models], home.models)
    catalog.scan()
    return catalog


async def test_a_rescan_by_command_outlives_what_goes_away(plane: Plane, client: Client) -> None:
    """`catalog.rescan` is answered with what is left, at whichever look a repository of the cache went."""
    folder = plane.home.models / "models--o--h"
    for place in itertools.count():
        write_repository(folder)
        vanishing = Vanishing(folder, place)
        with vanishing.armed():
            reply = await client.ask("catalog.rescan")
        assert reply["models"] >= 3
        if not vanishing.is_gone:
            break
    assert place > 20
