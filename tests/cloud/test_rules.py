"""Which rule decides: kinds of match, order, what does not compile."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.cloud.rules import Mode, RuleSet, compile_rules
from mlxd.protocol.errors import InvalidValue
from mlxd.protocol.settings import DEFAULT_TRIGGERS
from tests.support.http_server import settings_of

PROVIDERS = {"far": {"base_url": "http://127.0.0.1:1/v1"}, "near": {"base_url": "http://127.0.0.1:2/v1"}}


def rule_set(**rules: Any) -> RuleSet:
    """Compile rules; one without `to` that is not `never` goes to far/x."""
    rules = {rule_id: dict(rule) for rule_id, rule in rules.items()}
    for rule in rules.values():
        if rule.get("mode") != "never":
            rule.setdefault("to", ["far/x"])
    return compile_rules(settings_of({"cloud": {"providers": PROVIDERS, "rules": rules}}).cloud)


def _matches(pattern: str, name: str) -> bool:
    return rule_set(r={"match": pattern}).match(name) is not None


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("exact:gpt-4", ["gpt-4"], ["gpt-4o", "GPT-4", "xgpt-4", ""]),
        ("gpt-4", ["gpt-4"], ["gpt-4o"]),
        ("qwen:7b", ["qwen:7b"], ["qwen"]),
        ("exact:regex:x", ["regex:x"], ["x"]),
        ("prefix:gpt-", ["gpt-", "gpt-4", "gpt-\n"], ["gpt", "xgpt-4"]),
        ("glob:*/llama3", ["meta/llama3", "a/b/llama3"], ["meta/llama3-405b", "llama3", "Meta/Llama3"]),
        ("glob:gpt-?", ["gpt-4", "gpt-é"], ["gpt-", "gpt-4o"]),
        ("glob:a.b+(c)", ["a.b+(c)"], ["axb+(c)", "a.bb(c)"]),
        ("glob:é*", ["é", "éa"], ["e"]),
        ("glob:*", ["", "any\nthing"], []),
        ("regex:gpt-(4|5)", ["gpt-4", "gpt-5"], ["gpt-45", "gpt-4o", "xgpt-4"]),
        ("regex:gpt.*", ["gpt", "gpt\n4"], ["agpt"]),
        ("regex:a|b", ["a", "b"], ["ab", "ba"]),
        ("regex:(?i)gpt", ["GPT"], ["GPT4"]),
    ],
)
def test_a_match_is_one_of_the_whole_name(pattern: str, yes: list[str], no: list[str]) -> None:
    """No kind of match is satisfied by a part of the name."""
    assert [name for name in [*yes, *no] if _matches(pattern, name)] == yes


def test_the_order_is_never_priority_kind_length_id() -> None:
    """Every step of the order decides only where the ones before are equal."""
    ordered: dict[str, dict[str, Any]] = {
        "z-never": {"match": "glob:*", "mode": "never", "priority": -10},
        "high": {"match": "glob:*", "priority": 200},
        "e-exact": {"match": "exact:name"},
        "d-prefix": {"match": "prefix:name"},
        "c-prefix-short": {"match": "prefix:na"},
        "b-glob": {"match": "glob:nam*"},
        "b-glob-short": {"match": "glob:n*"},
        "a-regex": {"match": "regex:na.*"},
        "a-regex-2": {"match": "regex:na.+"},
        "a-regex-short": {"match": "regex:.*"},
        "0-low": {"match": "exact:name", "priority": 99},
    }
    for order in (list(ordered), list(reversed(ordered))):
        rules = rule_set(**{rule_id: ordered[rule_id] for rule_id in order})
        assert [rule.id for rule in rules.rules] == list(ordered)
        assert rules.matching("name") == rules.rules
        decisive = rules.match("name")
        assert decisive is not None
        assert (decisive.id, decisive.mode) == ("z-never", Mode.NEVER)


_NAMES = st.text(alphabet="ab/-.", max_size=6)
_RULES = st.fixed_dictionaries(
    {
        "match": st.builds(
            str.__add__,
            st.sampled_from(["exact:", "prefix:", "glob:"]),
            st.text(alphabet="ab/-.", min_size=1, max_size=3),
        ),
        "mode": st.sampled_from(["always", "never"]),
        "priority": st.integers(-2, 2),
    }
)


@given(st.lists(_RULES, max_size=6), _NAMES)
def test_a_never_rule_beats_all(rules: list[dict[str, Any]], name: str) -> None:
    """Whatever else matches, a matching never rule decides, and the order of the file does not matter."""
    named = {f"r{number}": rule for number, rule in enumerate(rules)}
    compiled = rule_set(**named)
    decisive = compiled.match(name)
    if any(rule.mode is Mode.NEVER for rule in compiled.matching(name)):
        assert decisive is not None
        assert decisive.mode is Mode.NEVER
    turned = rule_set(**{rule_id: named[rule_id] for rule_id in reversed(named)}).match(name)
    assert (decisive and decisive.id) == (turned and turned.id)


@given(st.text(alphabet="ab*?.", min_size=1, max_size=6), st.text(alphabet="ab.", max_size=6))
def test_a_glob_means_what_its_regex_says(pattern: str, name: str) -> None:
    """`*` is any text and `?` any character; everything else is itself."""
    wildcards = {"*": ".*", "?": "."}
    expected = re.fullmatch("".join(wildcards.get(char, re.escape(char)) for char in pattern), name, re.DOTALL)
    assert _matches(f"glob:{pattern}", name) == (expected is not None)


@pytest.mark.parametrize("pattern", ["regex:(a+)+b", "regex:(a|a)*b", "regex:(a|aa)+$b", "glob:" + "*a" * 100 + "b"])
def test_no_pattern_can_hang(pattern: str) -> None:
    """A backtracking engine takes longer than anybody waits on a name like this; RE2 says no at once."""
    assert not _matches(pattern, "a" * 50_000)


@pytest.mark.parametrize(
    ("rule", "setting", "words"),
    [
        ({"match": "regex:("}, "match", "missing )"),
        ({"match": "regex:(?=a)b"}, "match", "invalid perl operator"),
        ({"match": r"regex:(a)\1"}, "match", "invalid escape sequence"),
        ({"match": "regex:(((a{100}){100}){100})"}, "match", "cannot be used"),
        ({"match": "regex:" + "a" * 257}, "match", "257 characters; at most 256"),
        ({"match": "glob:[ab]"}, "match", "a glob knows * and ? only"),
        ({"match": "glob:"}, "match", "nothing after glob:"),
        ({"match": "gpt-*"}, "match", "write glob:gpt-*"),
        ({"match": "golb:gpt-*"}, "match", "exact name with a wildcard"),
        ({"match": "a", "to": []}, "to", "always needs at least one target PROVIDER/MODEL"),
        ({"match": "a", "to": [], "mode": "fallback"}, "to", "fallback needs at least one target PROVIDER/MODEL"),
        ({"match": "a", "mode": "fallback", "on": []}, "on", "without triggers would never send"),
        ({"match": "a", "to": ["far"]}, "to", "'far' is not PROVIDER/MODEL"),
        ({"match": "a", "to": ["far/"]}, "to", "is not PROVIDER/MODEL"),
        ({"match": "a", "to": ["nowhere/x"]}, "to", "there is no provider 'nowhere'"),
        ({"match": "a", "mode": "never", "to": ["far/x"]}, "to", "a never rule sends nowhere"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_by_name(rule: dict[str, Any], setting: str, words: str) -> None:
    """The error names the setting and says what is wrong."""
    with pytest.raises(InvalidValue) as refused:
        rule_set(bad=rule)
    assert refused.value.param == f"cloud.rules.bad.{setting}"
    assert words in refused.value.message


def test_a_targets_model_may_hold_slashes() -> None:
    """The provider ends at the first slash."""
    (target,) = rule_set(r={"match": "a", "to": ["near/org/model"]}).rules[0].targets
    assert (target.provider_id, target.model, str(target)) == ("near", "org/model", "near/org/model")


def test_all_pairs_of_kinds_are_ordered() -> None:
    """With equal priority and mode, exact goes before prefix before glob before regex."""
    kinds = ["exact:abc", "prefix:a", "glob:a*", "regex:a.*"]
    for first, second in itertools.combinations(kinds, 2):
        decisive = rule_set(a={"match": second}, b={"match": first}).match("abc")
        assert decisive is not None
        assert decisive.match == first


def test_targets_and_triggers_are_in_order() -> None:
    """A fallback rule has the usual triggers unless it names its own; an always rule has none."""
    compiled = rule_set(
        a={"match": "a", "mode": "fallback", "to": ["far/1", "near/2"], "on": ["oom"]},
        b={"match": "b", "mode": "fallback", "to": ["far/1"]},
        c={"match": "c", "to": ["far/1"]},
    )
    first, second, third = compiled.rules
    assert [str(target) for target in first.targets] == ["far/1", "near/2"]
    assert first.triggers == {"oom"}
    assert second.triggers == set(DEFAULT_TRIGGERS)
    assert third.triggers == set()


def test_a_disabled_rule_does_not_count() -> None:
    """It is listed, and matches nothing."""
    compiled = rule_set(a={"match": "a", "mode": "never", "enabled": False}, b={"match": "glob:a*"})
    assert len(compiled.rules) == 2
    decisive = compiled.match("a")
    assert decisive is not None
    assert decisive.id == "b"


def test_an_alias_is_matched_after_the_name_and_never_beats_all() -> None:
    """The name that was asked for goes first; a never rule for what it stands for keeps it here."""
    compiled = rule_set(
        a={"match": "org/model", "priority": 500}, b={"match": "short"}, c={"match": "prefix:secret", "mode": "never"}
    )
    asked = compiled.match("short", "org/model")
    meant = compiled.match("other", "org/model")
    kept = compiled.match("short", "secret/model")
    assert [rule and rule.id for rule in (asked, meant, kept)] == ["b", "a", "c"]


def test_ten_thousand_rules_are_one_look_up() -> None:
    """Globs and regexes are one automaton, exact names and prefixes are looked up."""
    kinds = ("exact:m{}", "prefix:p{}-", "glob:g{}-*", "regex:r{}[0-9]x")
    compiled = rule_set(**{f"r{number}": {"match": kinds[number % 4].format(number)} for number in range(10_000)})
    for name, rule_id in (("m4000", "r4000"), ("p4001-x", "r4001"), ("g4002-", "r4002"), ("r40037x", "r4003")):
        decisive = compiled.match(name)
        assert decisive is not None
        assert decisive.id == rule_id
    assert compiled.match("nobody") is None
