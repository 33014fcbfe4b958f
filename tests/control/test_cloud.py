"""`cloud.*` and `daemon.stop` over the socket."""

from typing import Any

import pytest

from tests.support.control import Client, Plane

LEAST = {"on": [], "to": [], "enabled": True}


async def add_provider(client: Client) -> None:
    """Add the provider that the rules of these tests use."""
    await client.ask("cloud.provider.add", id="p", base_url="https://host/v1", auth_env="KEY")


async def test_providers(plane: Plane, client: Client) -> None:
    """A provider is added with the name of its key's variable, changed in part, listed and removed."""
    await add_provider(client)
    text = plane.home.config.read_text()
    assert '[cloud.providers.p]\nbase_url = "https://host/v1"\nauth = { env = "KEY" }\n' in text
    await client.ask("cloud.provider.add", id="p", base_url="https://other/v1")
    assert await client.ask("cloud.provider.list") == {
        "providers": [
            {
                "id": "p",
                "kind": "openai",
                "base_url": "https://other/v1",
                "auth_env": "KEY",
                "auth": "env:KEY",
                "state": "ok",
            }
        ],
        "next": None,
    }
    await client.ask("cloud.provider.remove", id="p")
    assert await client.ask("cloud.provider.list") == {"providers": [], "next": None}
    assert "providers" not in plane.home.config.read_text()


@pytest.mark.parametrize(
    ("operation", "params", "exit_code", "words"),
    [
        ("cloud.provider.add", {"id": "p", "base_url": "ftp://host"}, 10, "https://host/v1"),
        ("cloud.provider.add", {"id": "p", "base_url": "https://host/v1", "kind": "other"}, 10, "openai, anthropic"),
        ("cloud.provider.add", {"id": "p", "base_url": "https://h/v1", "auth_env": "sk-1"}, 10, "not the key itself"),
        ("cloud.provider.remove", {"id": "nope"}, 4, "no provider 'nope'"),
        ("cloud.rule.remove", {"id": "nope"}, 4, "no rule 'nope'"),
        ("cloud.rule.add", {"match": "x", "mode": "sometimes"}, 10, "one of always, fallback, never"),
        ("cloud.rule.add", {"match": "x", "mode": "always", "to": ["nope/x"]}, 10, "nope"),
        ("cloud.rule.add", {"match": "x", "mode": "always"}, 10, "cloud.rules.x.to"),
        ("cloud.rule.add", {"match": "regex:(", "mode": "never"}, 10, "cloud.rules"),
    ],
)
async def test_refusals(
    plane: Plane, client: Client, operation: str, params: dict[str, Any], exit_code: int, words: str
) -> None:
    """What cannot work is refused with the reason, and nothing is written."""
    before = plane.home.config.read_text()
    error = await client.refused(operation, **params)
    assert (error["exit"], words in error["msg"]) == (exit_code, True)
    assert plane.home.config.read_text() == before


async def test_rules(plane: Plane, client: Client) -> None:
    """Rules are added, replaced by id or by match, listed in the order in which they are tried, and removed."""
    await add_provider(client)
    await client.ask("cloud.rule.add", id="big", match="glob:gpt-*", mode="always", to=["p/gpt"])
    await client.ask("cloud.rule.add", match="prefix:private-", mode="never")
    await client.ask("cloud.rule.add", match="glob:gpt-*", mode="always", to=["p/other"], priority=200)
    assert (await client.ask("cloud.rule.list"))["rules"] == [
        {"id": "private", "match": "prefix:private-", "mode": "never", "priority": 100, **LEAST},
        {"id": "big", "match": "glob:gpt-*", "mode": "always", "priority": 200, **LEAST, "to": ["p/other"]},
    ]
    await client.ask("cloud.rule.add", id="big", match="glob:gpt-*", mode="never")
    assert (await client.ask("cloud.rule.list"))["rules"][0]["to"] == []
    await client.ask("cloud.rule.remove", id="big")
    assert [rule["id"] for rule in (await client.ask("cloud.rule.list"))["rules"]] == ["private"]


async def test_a_rule_without_an_id_gets_one(plane: Plane, client: Client) -> None:
    """It is made from the words of the match, and another one is never overwritten by it."""
    for match in ("glob:gpt-4*", "prefix:gpt-4", "glob:*", "gpt-4"):
        await client.ask("cloud.rule.add", match=match, mode="never")
    assert sorted(plane.store.current.cloud.rules) == ["gpt-4", "gpt-4-2", "gpt-4-3", "rule"]


async def test_a_provider_in_use_is_not_removed(client: Client) -> None:
    """The rules that use it are named."""
    await add_provider(client)
    await client.ask("cloud.rule.add", id="big", match="x", mode="always", to=["p/x"])
    error = await client.refused("cloud.provider.remove", id="p")
    assert "is used by big" in error["msg"]
    assert error["hint"] == "mlxctl cloud provider remove p --cascade\nmlxctl cloud rule remove big"


async def test_enable_and_disable(plane: Plane, client: Client) -> None:
    """The switch is live, saved and shown."""
    assert (await client.ask("cloud.show"))["enabled"] is False
    await client.ask("cloud.enable")
    shown = await client.ask("cloud.show")
    assert (shown["enabled"], shown["providers"], shown["rules"], shown["breakers"]) == (True, [], [], [])
    assert (shown["budget"]["requests"], shown["budget"]["usd_per_day_micro"]) == (0, None)
    assert (await client.ask("cloud.enable"))["changed"] == []
    await client.ask("cloud.disable")
    assert plane.store.current.cloud.enabled is False


async def test_explain(client: Client) -> None:
    """The live matcher says where a name would go, by which rule, and what the others make of it."""
    await add_provider(client)
    await client.ask("cloud.rule.add", id="big", match="glob:gpt-*", mode="always", to=["p/gpt"])
    await client.ask("cloud.rule.add", id="all", match="glob:*", mode="always", to=["p/any"], priority=1)
    await client.ask("cloud.rule.add", id="mine", match="prefix:my-", mode="never")
    off = await client.ask("cloud.rule.explain", model="gpt-5")
    assert (off["route"], off["enabled"]) == ("cloud_disabled", False)
    await client.ask("cloud.enable")
    found = await client.ask("cloud.rule.explain", model="gpt-5")
    assert (found["route"], found["rule"], found["target"], found["is_local"]) == ("cloud", "big", "p/gpt", False)
    assert [(rule["id"], rule["verdict"]) for rule in found["rules"]] == [
        ("mine", "does not match"),
        ("big", "matches and decides"),
        ("all", "matches, but a rule before it decides"),
    ]


async def test_a_missing_key_is_warned_of_where_it_matters(plane: Plane, client: Client) -> None:
    """Adding the provider warns, and status goes on saying so; other changes are not bothered."""
    reply = await client.ask("cloud.provider.add", id="p", base_url="https://host/v1", auth_env="MISSING")
    assert any("MISSING" in warning for warning in reply["warnings"])
    assert any("MISSING" in problem for problem in (await client.ask("status"))["problems"])
    assert (await client.ask("settings.set", changes={"pool.max_models": 3}))["warnings"] == []


async def test_stop(plane: Plane, client: Client) -> None:
    """The daemon is told once per request, with or without patience, and the reply comes first."""
    with plane.requests.track("r", endpoint="chat", model="a", route="local"):
        assert await client.ask("daemon.stop") == {"stopping": True, "now": False, "requests": 1}
    assert (await client.ask("daemon.stop", now=True))["now"] is True
    assert plane.stops == [False, True]
