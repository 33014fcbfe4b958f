"""Local or cloud, the explanation of it, and which settings are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mlxd.alias import alias_targets
from mlxd.cloud.router import Decision, Router
from mlxd.cloud.secret import Secrets
from mlxd.protocol.errors import CloudDisabled, InvalidValue, OutOfMemory, QueueFull
from mlxd.protocol.settings import Settings
from tests.support.http_server import SimpleStore, settings_of

FAR: dict[str, Any] = {"base_url": "http://127.0.0.1:1/v1"}
LOCAL = Decision(asks_local=True)
BIG: dict[str, Any] = {"match": "glob:big*", "to": ["far/x"]}


def _settings(*, enabled: bool = True, rules: Any = None, providers: Any = None) -> Settings:
    cloud = {
        "enabled": enabled,
        "providers": {"far": FAR} if providers is None else providers,
        "rules": {"big": BIG} if rules is None else rules,
    }
    return settings_of({"cloud": cloud})


def _router(settings: Settings, *local: str, **environ: str) -> Router:
    aliases = alias_targets(settings)

    def alias_target(name: str) -> str:  # as the catalog does: a model that is here goes before an alias
        return name if name in local else aliases.get(name, name)

    return Router(SimpleStore(settings), lambda name: name in local, alias_target, Secrets(environ, Path("/nowhere")))


def test_a_rule_goes_before_what_is_here() -> None:
    """An always rule fires for a name that is not local, and for one that is."""
    router = _router(_settings(), "big-here")
    for name in ("big-there", "big-here"):
        decision = router.route(name)
        assert not decision.asks_local
        assert [(route.rule_id, route.target) for route in decision.routes] == [("big", "far/x")]


def test_without_a_rule_everything_is_local() -> None:
    """Also a name that nobody knows: the pool says so."""
    assert _router(_settings()).route("other") == LOCAL


def test_the_client_can_stay_local() -> None:
    """No rule is asked then, not even with the cloud off."""
    assert _router(_settings()).route("big", local_only=True) == LOCAL
    assert _router(_settings(enabled=False)).route("big", local_only=True) == LOCAL


def test_with_the_cloud_off_local_models_answer_and_others_name_the_rule() -> None:
    """CloudDisabled only where nobody here could answer."""
    router = _router(_settings(enabled=False), "big-here")
    assert router.route("big-here") == LOCAL
    with pytest.raises(CloudDisabled, match="rule 'big' sends 'big-there' to far/x, and the cloud is off") as refused:
        router.route("big-there")
    assert refused.value.hint == "mlxctl cloud enable"


def test_a_never_rule_is_named_in_the_route() -> None:
    """It keeps names local whether the cloud is on or not."""
    rules = {"big": BIG, "no": {"match": "prefix:big-secret", "mode": "never"}}
    for enabled in (True, False):
        assert _router(_settings(rules=rules, enabled=enabled)).route("big-secret-1") == Decision(
            asks_local=True, rule_id="no"
        )


def test_new_settings_decide_the_next_request() -> None:
    """The router follows the store's snapshot; a route keeps the provider that it was made with."""
    store = SimpleStore(_settings())
    router = Router(store, lambda name: False, lambda name: name, Secrets({}, Path("/nowhere")))
    before = router.route("big")
    store.current = _settings(providers={"far": {"base_url": "http://127.0.0.1:9/v1"}}, rules={"big": BIG})
    after = router.route("big")
    store.current = _settings(rules={})
    addresses = [decision.routes[0].provider.base_url for decision in (before, after)]
    assert addresses == ["http://127.0.0.1:1/v1", "http://127.0.0.1:9/v1"]
    assert router.route("big") == LOCAL


@pytest.mark.parametrize(
    ("name", "enabled", "outcome", "reason"),
    [
        ("big", True, "cloud", "rule 'big' always sends it to far/x"),
        ("big", False, "cloud_disabled", "rule 'big' sends 'big' to far/x, and the cloud is off"),
        ("big-here", False, "local", "rule 'big' would send it to far/x, but the cloud is off"),
        ("here", True, "local", "no rule matches"),
        ("typo", True, "model_not_found", "no rule matches, and no local model has this name"),
        ("big-no", True, "model_not_found", "rule 'no' keeps it on this machine, and no local model has this name"),
    ],
)
def test_explain_says_what_would_happen_and_why(name: str, enabled: bool, outcome: str, reason: str) -> None:
    """The outcome is that of the live matcher."""
    rules = {"big": BIG, "no": {"match": "big-no", "mode": "never"}}
    explanation = _router(_settings(rules=rules, enabled=enabled), "here", "big-here").explain(name)
    assert (explanation.outcome, explanation.reason) == (outcome, reason)
    assert explanation.targets == (("far/x",) if outcome == "cloud" else ())


def test_explain_shows_every_rule_in_order() -> None:
    """Each rule with its verdict; plain data for the control socket."""
    rules = {
        "a": {"match": "regex:b.*", "to": ["far/a"]},
        "b": {"match": "prefix:b", "to": ["far/b"]},
        "c": {"match": "prefix:x", "mode": "never"},
    }
    explained = dataclasses.asdict(_router(_settings(rules=rules)).explain("big"))
    assert [(rule["rule_id"], rule["matches"], rule["decides"]) for rule in explained["rules"]] == [
        ("c", False, False),
        ("b", True, True),
        ("a", True, False),
    ]
    assert explained["rule_id"] == "b"


def test_exact_names_are_those_that_would_leave() -> None:
    """Exact always rules, while the cloud is on and no never rule says otherwise."""
    rules = {
        "a": {"match": "exact:one", "to": ["far/1"]},
        "b": {"match": "two", "to": ["far/2"]},
        "c": {"match": "three", "to": ["far/3"]},
        "d": {"match": "prefix:thr", "mode": "never"},
        "e": {"match": "prefix:other", "to": ["far/4"]},
    }
    names = _router(_settings(rules=rules)).exact_names()
    assert {name: route.target for name, route in names.items()} == {"one": "far/1", "two": "far/2"}
    assert _router(_settings(rules=rules, enabled=False)).exact_names() == {}


def test_a_provider_in_use_cannot_be_removed() -> None:
    """The error names all rules that use it."""
    rules = {"b": BIG, "a": {"match": "x", "to": ["far/y"]}}
    router = _router(_settings(rules=rules))
    with pytest.raises(InvalidValue, match="provider 'far' is used by a, b") as refused:
        router.check(_settings(rules=rules, providers={}))
    assert refused.value.data == {"rules": ["a", "b"]}
    assert router.check(_settings(rules={}, providers={})) == []


def test_a_bad_rule_is_refused_before_it_is_live() -> None:
    """Check compiles the new rules; the old ones stay in force."""
    router = _router(_settings())
    with pytest.raises(InvalidValue, match=r"cloud\.rules\.bad\.match"):
        router.check(_settings(rules={"bad": {"match": "regex:(", "to": ["far/x"]}}))
    assert router.route("big").routes


def test_a_key_that_is_not_there_is_a_warning() -> None:
    """The variable may come with the next start; its value never stands in the warning."""
    providers = {"far": FAR | {"auth": {"env": "FAR_KEY"}}, "near": FAR | {"auth": {"env": "NEAR_KEY"}}}
    new = _settings(providers=providers)
    (warning,) = _router(_settings(), NEAR_KEY="sk-1").check(new)
    assert "FAR_KEY is not set" in warning
    assert "sk-1" not in warning


FALLBACK: dict[str, Any] = {"match": "glob:big*", "mode": "fallback", "to": ["far/x", "far/y"], "on": ["oom"]}


def test_a_fallback_asks_this_machine_first() -> None:
    """The cloud is for the errors that the rule names, in the order of its targets; while off, for nothing."""
    decision = _router(_settings(rules={"f": FALLBACK})).route("big")
    assert decision.asks_local
    assert [route.target for route in decision.routes] == ["far/x", "far/y"]
    assert decision.catches(OutOfMemory("x"))
    assert not decision.catches(QueueFull("x"))
    off = _router(_settings(rules={"f": FALLBACK}, enabled=False)).route("big")
    assert (off.asks_local, off.routes) == (True, ())


@pytest.mark.parametrize(
    ("name", "assume", "outcome"),
    [
        ("big-here", None, "local"),
        ("big-here", "oom", "cloud"),
        ("big-here", "queue_full", "queue_full"),
        ("big-there", None, "model_not_found"),
    ],
)
def test_explain_may_assume_a_failure(name: str, assume: str | None, outcome: str) -> None:
    """It says what would happen then, by the live matcher, and sends nothing."""
    explanation = _router(_settings(rules={"f": FALLBACK}), "big-here").explain(name, assume)
    assert explanation.outcome == outcome
    assert explanation.targets == (("far/x", "far/y") if outcome == "cloud" else ())


def test_an_alias_is_routed_as_what_it_stands_for() -> None:
    """Where no rule names the alias itself."""
    document = {
        "cloud": {"enabled": True, "providers": {"far": FAR}, "rules": {"big": BIG}},
        "models": {"big-1": {"aliases": ["short"]}},
    }
    router = _router(settings_of(document))
    assert router.route("short", "big-1").routes
    assert router.explain("short").alias_of == "big-1"


def test_an_alias_never_takes_a_local_model_to_the_cloud() -> None:
    """A model on disk goes before an alias of its name: rules for what the alias would mean do not count."""
    document = {
        "cloud": {"enabled": True, "providers": {"far": FAR}, "rules": {"big": BIG}},
        "models": {"big-1": {"aliases": ["short"]}},
    }
    router = _router(settings_of(document), "short")
    assert router.route("short") == LOCAL
    assert (router.explain("short").alias_of, router.explain("short").outcome) == (None, "local")
