"""Local or cloud, the explanation of it, and which settings are refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mlxd.cloud.router import CloudRoute, LocalRoute, Router
from mlxd.protocol.errors import CloudDisabled, InvalidValue
from mlxd.protocol.settings import Settings
from tests.support.http_server import SimpleStore, settings_of

FAR: dict[str, Any] = {"base_url": "http://127.0.0.1:1/v1"}
BIG: dict[str, Any] = {"match": "glob:big*", "to": ["far/x"]}


def _settings(*, enabled: bool = True, rules: Any = None, providers: Any = None) -> Settings:
    cloud = {
        "enabled": enabled,
        "providers": {"far": FAR} if providers is None else providers,
        "rules": {"big": BIG} if rules is None else rules,
    }
    return settings_of({"cloud": cloud})


def _router(settings: Settings, *local: str, **environ: str) -> Router:
    return Router(SimpleStore(settings), lambda name: name in local, environ)


def test_a_rule_goes_before_what_is_here() -> None:
    """An always rule fires for a name that is not local, and for one that is."""
    router = _router(_settings(), "big-here")
    for name in ("big-there", "big-here"):
        route = router.route(name)
        assert isinstance(route, CloudRoute)
        assert (route.rule_id, route.target) == ("big", "far/x")


def test_without_a_rule_everything_is_local() -> None:
    """Also a name that nobody knows: the pool says so."""
    assert _router(_settings()).route("other") == LocalRoute()


def test_the_client_can_stay_local() -> None:
    """No rule is asked then, not even with the cloud off."""
    assert _router(_settings()).route("big", local_only=True) == LocalRoute()
    assert _router(_settings(enabled=False)).route("big", local_only=True) == LocalRoute()


def test_with_the_cloud_off_local_models_answer_and_others_name_the_rule() -> None:
    """CloudDisabled only where nobody here could answer."""
    router = _router(_settings(enabled=False), "big-here")
    assert router.route("big-here") == LocalRoute()
    with pytest.raises(CloudDisabled, match="rule 'big' sends 'big-there' to far/x, and the cloud is off") as refused:
        router.route("big-there")
    assert refused.value.hint == "mlxctl cloud enable"


def test_a_never_rule_is_named_in_the_route() -> None:
    """It keeps names local whether the cloud is on or not."""
    rules = {"big": BIG, "no": {"match": "prefix:big-secret", "mode": "never"}}
    for enabled in (True, False):
        assert _router(_settings(rules=rules, enabled=enabled)).route("big-secret-1") == LocalRoute("no")


def test_new_settings_decide_the_next_request() -> None:
    """The router follows the store's snapshot; a route keeps the provider that it was made with."""
    store = SimpleStore(_settings())
    router = Router(store, lambda name: False, {})
    before = router.route("big")
    store.current = _settings(providers={"far": {"base_url": "http://127.0.0.1:9/v1"}}, rules={"big": BIG})
    after = router.route("big")
    store.current = _settings(rules={})
    assert isinstance(before, CloudRoute)
    assert isinstance(after, CloudRoute)
    assert (before.provider.base_url, after.provider.base_url) == ("http://127.0.0.1:1/v1", "http://127.0.0.1:9/v1")
    assert router.route("big") == LocalRoute()


@pytest.mark.parametrize(
    ("name", "enabled", "outcome", "reason"),
    [
        ("big", True, "cloud", "rule 'big' always sends it to far/x"),
        ("big", False, "cloud_disabled", "rule 'big' sends 'big' to far/x, and the cloud is off"),
        ("big-here", False, "local", "rule 'big' would send it to far/x, but the cloud is off and the model is here"),
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
    assert explanation.target == ("far/x" if outcome == "cloud" else None)


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
    assert isinstance(router.route("big"), CloudRoute)


def test_a_key_that_is_not_there_is_a_warning() -> None:
    """The variable may come with the next start; its value never stands in the warning."""
    providers = {"far": FAR | {"auth": {"env": "FAR_KEY"}}, "near": FAR | {"auth": {"env": "NEAR_KEY"}}}
    new = _settings(providers=providers)
    (warning,) = _router(_settings(), NEAR_KEY="sk-1").check(new)
    assert "FAR_KEY is not set" in warning
    assert "sk-1" not in warning
