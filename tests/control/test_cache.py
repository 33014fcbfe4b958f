"""The noise rules over the control socket: what there is, what is on, and switches that cannot be meant."""

from __future__ import annotations

from mlxd.protocol.noise import RULES
from tests.support.control import Client


async def test_rules_say_what_is_on(client: Client) -> None:
    """A setting turns each off, at once; the list has what each removes, where and from whom."""
    first, second = (rule.name for rule in RULES)
    await client.ask("settings.set", changes={"http.noise_rules_off": [second]})
    rules = (await client.ask("cache.rules"))["rules"]
    assert [(rule["name"], rule["enabled"]) for rule in rules] == [(first, True), (second, False)]
    assert [(rule["removes"], tuple(rule["clients"])) for rule in rules] == [
        (rule.removes, rule.clients) for rule in RULES
    ]
    assert rules[0]["matches"] == [
        {"role": match.role, "place": match.place.value, "pattern": match.pattern} for match in RULES[0].matches
    ]
    await client.ask("settings.set", changes={"http.noise_rules_off": None})
    assert [rule["enabled"] for rule in (await client.ask("cache.rules"))["rules"]] == [True, True]


async def test_a_rule_that_there_is_not_cannot_be_off(client: Client) -> None:
    """The error has the names that there are."""
    error = await client.refused("settings.set", changes={"http.noise_rules_off": ["claude-tokens"]})
    assert (error["code"], error["field"]) == ("settings.invalid_value", "http.noise_rules_off")
    assert [rule.name for rule in RULES if rule.name not in error["msg"]] == []
