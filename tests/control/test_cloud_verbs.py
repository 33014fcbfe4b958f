"""The verbs of rules, providers, breakers, budget and prices over the socket."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.control import Client, Plane
from tests.support.upstream import KEY, upstream


async def ids(client: Client) -> list[str]:
    """Return the rules in the order in which they are tried."""
    return [rule["id"] for rule in (await client.ask("cloud.rule.list"))["rules"]]


async def four_rules(client: Client) -> None:
    """Add a never rule and three others that stand in the order c, b, a."""
    await client.ask("cloud.provider.add", id="p", base_url="https://host/v1", auth_env="KEY")
    await client.ask("cloud.rule.add", id="mine", match="prefix:my-", mode="never")
    for rule_id, match in (("a", "glob:*"), ("b", "glob:b*"), ("c", "exact:c")):
        await client.ask("cloud.rule.add", id=rule_id, match=match, mode="always", to=["p/x"])


@pytest.mark.parametrize(
    ("moves", "order"),
    [
        ([{"id": "a", "before": "c"}], ["a", "c", "b"]),
        ([{"id": "a", "before": "b"}], ["c", "a", "b"]),
        ([{"id": "c", "after": "b"}], ["b", "c", "a"]),
        ([{"id": "c", "last": True}], ["b", "a", "c"]),
        ([{"id": "a", "first": True}, {"id": "b", "first": True}], ["b", "a", "c"]),
        ([{"id": "b", "after": "c"}], ["c", "b", "a"]),
    ],
)
async def test_a_rule_moves(client: Client, moves: list[dict[str, Any]], order: list[str]) -> None:
    """It stands where it is wanted, the others keep their order, and never rules stay in front."""
    await four_rules(client)
    for move in moves:
        await client.ask("cloud.rule.move", **move)
    assert await ids(client) == ["mine", *order]


async def test_a_move_that_makes_no_sense(client: Client) -> None:
    """It is refused with the reason."""
    await four_rules(client)
    for params, words in (
        ({"id": "a"}, "one place"),
        ({"id": "a", "before": "b", "last": True}, "one place"),
        ({"id": "a", "before": "a"}, "itself"),
        ({"id": "a", "before": "mine"}, "never rules come before"),
        ({"id": "a", "before": "nope"}, "no rule 'nope'"),
        ({"id": "nope", "first": True}, "no rule 'nope'"),
    ):
        assert words in (await client.refused("cloud.rule.move", **params))["msg"]


async def test_a_rule_is_changed_in_part(client: Client) -> None:
    """What is not given stays; one that becomes a never rule loses its targets, and a disabled one does not count."""
    await four_rules(client)
    await client.ask("cloud.rule.set", id="a", mode="fallback", on=["oom"], priority=7)
    shown = await client.ask("cloud.rule.show", id="a")
    assert (shown["match"], shown["mode"], shown["on"], shown["to"]) == ("glob:*", "fallback", ["oom"], ["p/x"])
    assert (shown["priority"], shown["place"], shown["of"]) == (7, 4, 4)
    await client.ask("cloud.rule.disable", id="c")
    assert (await client.ask("cloud.rule.explain", model="c"))["rule"] == "a"
    await client.ask("cloud.rule.enable", id="c")
    assert (await client.ask("cloud.rule.explain", model="c"))["rule"] == "c"
    await client.ask("cloud.rule.set", id="a", mode="never")
    assert (await client.ask("cloud.rule.show", id="a"))["to"] == []
    assert "nothing to set" in (await client.refused("cloud.rule.set", id="a"))["msg"]


async def test_explain_assumes_a_failure(client: Client) -> None:
    """What a fallback rule would do after it, and which failures it is for."""
    await four_rules(client)
    await client.ask("cloud.enable")
    await client.ask("cloud.rule.set", id="a", mode="fallback", on=["oom"], to=["p/x", "p/y"])
    found = await client.ask("cloud.rule.explain", model="z", assume="oom")
    assert (found["route"], found["targets"], found["triggers"]) == ("cloud", ["p/x", "p/y"], ["oom"])
    assert (await client.ask("cloud.rule.explain", model="z", assume="queue_full"))["route"] == "queue_full"
    assert "does_not_fit" in (await client.refused("cloud.rule.explain", model="z", assume="rain"))["msg"]


async def test_a_provider_is_changed_in_part(client: Client) -> None:
    """The reference to the key and the timeouts are shown as they hold; a key given instead is not repeated."""
    await four_rules(client)
    await client.ask("cloud.provider.set", id="p", auth="file:secrets/x", idle="7s")
    shown = await client.ask("cloud.provider.show", id="p")
    assert (shown["auth"], shown["timeouts_ms"]["idle"], shown["rules"]) == ("file:secrets/x", 7000, ["a", "b", "c"])
    assert "secrets/x" in shown["key_problem"]
    await client.ask("cloud.provider.set", id="p", auth="none")
    assert (await client.ask("cloud.provider.show", id="p"))["auth"] is None
    error = await client.refused("cloud.provider.set", id="p", auth="sk-123")
    assert "sk-123" not in str(error)
    assert (await client.refused("cloud.provider.set", id="nope", idle="1s"))["code"] == "not_found"


async def test_a_provider_is_removed_with_what_uses_it(plane: Plane, client: Client) -> None:
    """Rules lose its targets, and those without any are gone; without the wish for it nothing changes."""
    await four_rules(client)
    await client.ask("cloud.provider.add", id="q", base_url="https://host/v1")
    await client.ask("cloud.rule.set", id="a", to=["p/x", "q/x"])
    assert (await client.refused("cloud.provider.remove", id="p"))["code"] == "in_use"
    await client.ask("cloud.provider.remove", id="p", cascade=True)
    assert await ids(client) == ["mine", "a"]
    assert plane.store.current.cloud.rules["a"].to == ("q/x",)


async def test_a_budget_and_prices(client: Client) -> None:
    """They are set, shown in micro-USD, and a target without a price is named."""
    await four_rules(client)
    await client.ask("cloud.enable")
    await client.ask("cloud.budget.set", usd_per_day="2.5")
    shown = await client.ask("cloud.budget.show")
    assert (shown["usd_per_day_micro"], shown["requests_per_day"], shown["unpriced"]) == (2_500_000, None, ["p/x"])
    assert any("p/x has no price" in problem for problem in (await client.ask("status"))["problems"])
    await client.ask("cloud.price.set", target="p/x", input="0.5", output="1")
    assert (await client.ask("cloud.price.list"))["prices"] == [{"target": "p/x", "input": 0.5, "output": 1.0}]
    assert (await client.ask("cloud.budget.show"))["unpriced"] == []
    await client.ask("cloud.price.remove", target="p/x")
    assert (await client.refused("cloud.price.remove", target="p/x"))["code"] == "not_found"
    assert (await client.refused("cloud.price.set", target="nope/x", input="1", output="1"))["code"] == "not_found"
    await client.ask("cloud.budget.set", usd_per_day="none", requests_per_day="3")
    assert (await client.ask("cloud.budget.show"))["requests_per_day"] == 3


async def test_a_breaker_is_listed_and_reset(plane: Plane, client: Client) -> None:
    """A target that keeps failing is shown as left alone until somebody resets it."""
    for _ in range(5):
        admission = plane.upstreams.breakers.admit("p/x")
        assert admission is not None
        plane.upstreams.breakers.record(admission, failed=True)
    (shown,) = (await client.ask("cloud.breaker.list"))["breakers"]
    assert (shown["target"], shown["state"]) == ("p/x", "open")
    assert 0 < shown["retry_in_ms"] <= 30_000
    assert (await client.refused("cloud.breaker.reset", target="p/y"))["code"] == "not_found"
    assert (await client.ask("cloud.breaker.reset", target="p/x")) == {"closed": 1}
    assert (await client.ask("cloud.breaker.list"))["breakers"] == []


async def test_a_provider_is_tested_with_one_call(plane: Plane, client: Client) -> None:
    """Its models come back, or one token's answer; while the cloud is off, too, since somebody asked for it."""
    plane.environ["KEY"] = KEY
    async with upstream() as far:
        await client.ask("cloud.provider.add", id="p", base_url=far.url, auth_env="KEY")
        found = await client.ask("cloud.provider.test", id="p")
        assert (found["ok"], found["status"], found["models"]) == (True, 200, ["a", "b"])
        found = await client.ask("cloud.provider.test", id="p", model="a")
        assert (found["ok"], [seen.path for seen in far.seen]) == (True, ["/v1/models", "/v1/chat/completions"])
        assert far.seen[1].json["max_tokens"] == 1


async def test_a_refused_key_is_seen_until_a_test_succeeds(plane: Plane, client: Client) -> None:
    """`provider list` and `status` say so, and a call that succeeds lifts it."""
    plane.environ["KEY"] = KEY
    async with upstream() as far:
        await client.ask("cloud.provider.add", id="p", base_url=far.url, auth_env="KEY")
        far.behaviour, far.status, far.reply = "refuse", 401, b'{"error":{"message":"no such key %s"}}' % KEY.encode()
        for model in (None, "a"):
            found = await client.ask("cloud.provider.test", id="p", model=model)
            assert (found["ok"], found["status"], found["code"]) == (False, 401, "auth_failed")
            assert KEY not in str(found)
            assert (await client.ask("cloud.provider.list"))["providers"][0]["state"] == "auth_failed"
            assert any("refused its key" in problem for problem in (await client.ask("status"))["problems"])
        far.behaviour = "answer"
        assert (await client.ask("cloud.provider.test", id="p"))["ok"]
        assert (await client.ask("cloud.provider.list"))["providers"][0]["state"] == "ok"


async def test_a_provider_that_is_not_there(client: Client) -> None:
    """A test says that it cannot be reached; that is an answer, not an error of ours."""
    await client.ask("cloud.provider.add", id="p", base_url="http://127.0.0.1:1/v1")
    found = await client.ask("cloud.provider.test", id="p")
    assert (found["ok"], found["status"], found["code"]) == (False, None, "upstream_unreachable")
    assert (await client.refused("cloud.provider.test", id="nope"))["code"] == "not_found"
