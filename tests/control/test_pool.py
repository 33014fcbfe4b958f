"""Estimates, simulations, evictions and dry runs over the socket."""

from __future__ import annotations

from tests.support.control import CONFIG, Client, Plane


async def load(client: Client, *model_ids: str) -> None:
    """Load models and wait for them."""
    for model_id in model_ids:
        reply = await client.ask("model.load", model=model_id)
        if "op" in reply:
            await client.wait(reply["op"])


async def test_an_estimate_says_where_its_numbers_come_from(plane: Plane, client: Client) -> None:
    """Before a load they come of the files, after it they are measured; the parts are the total."""
    before = await client.ask("model.estimate", model="a", context=1000, parallel=2)
    assert (before["weights_confidence"], before["kv_confidence"], before["fits"]) == ("header", "guess", "fits")
    assert before["total_bytes"] == before["weights_bytes"] + before["kv_bytes"] + before["margin_bytes"]
    await load(client, "a")
    after = await client.ask("model.estimate", model="a")
    assert (after["weights_confidence"], after["kv_confidence"]) == ("measured", "measured")
    assert plane.state("a") == "ready"


async def test_an_estimate_of_nothing_is_refused(client: Client) -> None:
    """A context or a number of sequences of 0 means nothing, and no sequence is longer than the context."""
    assert "at least 1" in (await client.refused("model.estimate", model="a", context=0))["msg"]
    assert "at least 1" in (await client.refused("model.estimate", model="a", parallel=0))["msg"]
    assert (
        "more than the context of a, 2048" in (await client.refused("model.estimate", model="a", context=9999))["msg"]
    )
    assert (await client.refused("model.estimate", model="nothing"))["code"] == "model_not_found"


async def test_a_simulated_limit_names_victims_and_what_would_be_refused(plane: Plane, client: Client) -> None:
    """The words of the real change, its refusals as a list; settings, file and models stay."""
    await load(client, "a", "b")
    reply = await client.ask("pool.simulate", memory="3MB")
    assert [victim["id"] for victim in reply["evicting"]] == ["a"]
    assert (reply["refused"], reply["memory"]["limit_bytes"]) == ([], 3_000_000)
    assert (await client.ask("pool.simulate", memory="16MB"))["evicting"] == []  # the limit that it has
    too_much = await client.ask("pool.simulate", memory="900GB", max_models="1")
    assert ["usable memory" in reason for reason in too_much["refused"]] == [True]
    assert [victim["id"] for victim in too_much["evicting"]] == ["a"]
    assert plane.home.config.read_text() == CONFIG
    assert (plane.state("a"), plane.state("b")) == ("ready", "ready")


async def test_a_simulated_load_is_the_dry_run_of_one(plane: Plane, client: Client) -> None:
    """Both name the load and what gives way; one that never fits is a refusal of the one and an error of the other."""
    await client.ask("settings.set", changes={"pool.max_models": 1})
    await load(client, "a")
    simulated = await client.ask("pool.simulate", load="b")
    planned = await client.ask("model.load", {"dry": True}, model="b")
    assert simulated["evicting"] == planned["evicting"]
    assert ([victim["id"] for victim in planned["evicting"]], planned["loading"]) == (["a"], ["b"])
    assert plane.state("b") == "unloaded"

    await client.ask("model.pin", model="a")
    assert "max_models is 1" in (await client.ask("pool.simulate", load="b"))["refused"][0]
    assert (await client.refused("model.load", {"dry": True}, model="b"))["code"] == "does_not_fit"


async def test_a_simulation_needs_one_question(client: Client) -> None:
    """Neither none nor both."""
    assert "either a model to load" in (await client.refused("pool.simulate"))["msg"]
    assert "either a model to load" in (await client.refused("pool.simulate", load="a", memory="4MB"))["msg"]


async def test_evictions_are_named_and_can_be_waited_for(plane: Plane, client: Client) -> None:
    """A dry run moves nothing; the real one ends when the memory is free; a pinned model is refused."""
    await load(client, "a", "b")
    await client.ask("model.pin", model="b")
    planned = await client.ask("pool.evict", {"dry": True})
    assert [victim["id"] for victim in planned["evicting"]] == ["a"]
    assert "op" not in planned
    assert plane.state("a") == "ready"

    begun = await client.ask("pool.evict")
    assert begun["evicting"] == planned["evicting"]
    assert begun["kept"] == [{"id": "b", "reason": "b is pinned"}]
    assert (await client.wait(begun["op"]))["state"] == "done"
    assert plane.state("a") == "unloaded"
    error = await client.refused("pool.evict", model="b")
    assert (error["exit"], error["hint"]) == (5, "mlxctl model unpin b, then again")


async def test_a_dry_unload_moves_nothing(plane: Plane, client: Client) -> None:
    """It names the model and its bytes."""
    await load(client, "a")
    planned = await client.ask("model.unload", {"dry": True}, model="a")
    assert [victim["id"] for victim in planned["evicting"]] == ["a"]
    assert plane.state("a") == "ready"
