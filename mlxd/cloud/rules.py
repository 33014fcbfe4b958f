"""Match model names against rules. Pure: no I/O, no clock, no settings store.

The order is total: `never` rules first, then higher priority, exact before prefix before glob before regex, the longer
literal part, the id. A match is always one of the whole name. Globs and regexes run on RE2, in time linear in the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import re2

from mlxd.glob import MAX_PATTERN_CHARACTERS, glob_regex, re2_options
from mlxd.protocol.errors import InvalidValue
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import CloudSettings, RuleSettings

# Of all globs and regexes together; ten thousand short ones take a fraction of it.
_MAX_SET_BYTES = 256 << 20
# Characters that are not plain text in RE2's syntax.
_SPECIAL = frozenset("\\.+*?()|[]{}^$")


class Mode(Enum):
    """What a rule does with a name that it matches."""

    NEVER = "never"
    ALWAYS = "always"
    FALLBACK = "fallback"


class MatchKind(IntEnum):
    """How a rule matches; the lower goes first."""

    EXACT = 0
    PREFIX = 1
    GLOB = 2
    REGEX = 3


@dataclass(frozen=True, slots=True)
class Target:
    """Where a rule sends: a provider and the model's name there."""

    provider_id: str
    model: str

    def __str__(self) -> str:
        return f"{self.provider_id}/{self.model}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One compiled rule."""

    id: str
    match: str  # as it was written
    mode: Mode
    priority: int
    enabled: bool
    kind: MatchKind
    pattern: str  # without the word before the colon
    literal_characters: int
    targets: tuple[Target, ...]  # tried in this order; none for never
    triggers: frozenset[str]  # the local failures that a fallback rule is for
    regex: str | None  # of globs and regexes, in RE2's syntax

    @property
    def order(self) -> tuple[bool, int, MatchKind, int, str]:
        """What rules are sorted by."""
        return (self.mode is not Mode.NEVER, -self.priority, self.kind, -self.literal_characters, self.id)


class RuleSet:
    """The rules of one settings snapshot, and which of them decides for a name.

    A match costs time linear in the name, not in the number of rules: exact names and prefixes are looked up, and all
    globs and regexes are one automaton.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Take compiled rules in any order.

        Raises:
            InvalidValue: the globs and regexes are too many for one automaton.
        """
        self.rules = tuple(sorted(rules, key=lambda rule: rule.order))
        self._exact: dict[str, list[Rule]] = {}
        self._prefix: dict[str, list[Rule]] = {}
        self._patterns: list[Rule] = []
        for rule in (rule for rule in self.rules if rule.enabled):
            if rule.kind is MatchKind.EXACT:
                self._exact.setdefault(rule.pattern, []).append(rule)
            elif rule.kind is MatchKind.PREFIX:
                self._prefix.setdefault(rule.pattern, []).append(rule)
            else:
                self._patterns.append(rule)
        self._prefix_lengths = sorted({len(prefix) for prefix in self._prefix})
        self._automaton = _automaton(self._patterns)

    def matching(self, name: str) -> tuple[Rule, ...]:
        """Return the enabled rules that match the whole of *name*, the one that decides first."""
        found = list(self._exact.get(name, ()))
        for length in self._prefix_lengths:
            if length > len(name):
                break
            found += self._prefix.get(name[:length], ())
        if self._automaton is not None:
            found += [self._patterns[index] for index in self._automaton.Match(name) or ()]
        return tuple(sorted(found, key=lambda rule: rule.order))

    def match(self, *names: str) -> Rule | None:
        """Return the rule that decides for a model of these names: the one asked for, then what it stands for.

        A never rule for any of them decides.
        """
        matches = [found[0] for name in dict.fromkeys(names) if (found := self.matching(name))]
        return next((rule for rule in matches if rule.mode is Mode.NEVER), matches[0] if matches else None)


def _automaton(patterns: list[Rule]) -> Any:
    if not patterns:
        return None
    options = re2_options()
    options.max_mem = _MAX_SET_BYTES
    automaton = re2.Set.FullMatchSet(options)
    for rule in patterns:
        automaton.Add(rule.regex)
    try:
        automaton.Compile()
    except re2.error as error:
        raise InvalidValue(
            f"cloud.rules: {len(patterns)} globs and regexes are too many to match at once: {error}",
            param="cloud.rules",
            hint="mlxctl cloud rule list",
        ) from None
    return automaton


def compile_rules(cloud: CloudSettings) -> RuleSet:
    """Return the rules ready to match.

    Raises:
        InvalidValue: a pattern that does not compile, a target that is missing, surplus or leads to no provider.
    """
    return RuleSet(_compile_rule(rule_id, rule, cloud.providers) for rule_id, rule in cloud.rules.items())


def _compile_rule(rule_id: str, rule: RuleSettings, provider_ids: Iterable[str]) -> Rule:
    kind, pattern = _split(rule_id, rule.match)
    mode = Mode(rule.mode)
    literal, regex = _literal_and_regex(rule_id, kind, pattern)
    return Rule(
        id=rule_id,
        match=rule.match,
        mode=mode,
        priority=rule.priority,
        enabled=rule.enabled,
        kind=kind,
        pattern=pattern,
        literal_characters=literal,
        targets=_targets(rule_id, rule, mode, provider_ids),
        triggers=frozenset(rule.on) if mode is Mode.FALLBACK else frozenset(),
        regex=regex,
    )


def _refuse(rule_id: str, name: str, reason: str, hint: str = "mlxctl cloud rule list") -> InvalidValue:
    key = format_path(("cloud", "rules", rule_id, name))
    return InvalidValue(f"{key}: {reason}", param=key, hint=hint)


def _split(rule_id: str, match: str) -> tuple[MatchKind, str]:
    word, colon, pattern = match.partition(":")
    kind = MatchKind.__members__.get(word.upper()) if word.islower() else None
    if kind is None or not colon:
        # A name may hold a colon (`name:tag`), a star is no part of any.
        if "*" in match or "?" in match:
            raise _refuse(rule_id, "match", f"{match!r} is an exact name with a wildcard in it; write glob:{match}")
        return MatchKind.EXACT, match
    if not pattern:
        raise _refuse(rule_id, "match", f"there is nothing after {word}:")
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise _refuse(rule_id, "match", f"the pattern has {len(pattern)} characters; at most {MAX_PATTERN_CHARACTERS}")
    return kind, pattern


def _targets(rule_id: str, rule: RuleSettings, mode: Mode, provider_ids: Iterable[str]) -> tuple[Target, ...]:
    if mode is Mode.NEVER:
        if rule.to:
            raise _refuse(rule_id, "to", "a never rule sends nowhere; leave `to` out")
        return ()
    if not rule.to:
        raise _refuse(rule_id, "to", f"{mode.value} needs at least one target PROVIDER/MODEL")
    if mode is Mode.FALLBACK and not rule.on:
        raise _refuse(rule_id, "on", "a fallback rule without triggers would never send; remove it, or name some")
    return tuple(_target(rule_id, to, provider_ids) for to in rule.to)


def _target(rule_id: str, to: str, provider_ids: Iterable[str]) -> Target:
    provider_id, _, model = to.partition("/")
    if not provider_id or not model:
        raise _refuse(rule_id, "to", f"{to!r} is not PROVIDER/MODEL")
    if provider_id not in provider_ids:
        raise _refuse(rule_id, "to", f"there is no provider {provider_id!r}", "mlxctl cloud provider list")
    return Target(provider_id, model)


def _literal_and_regex(rule_id: str, kind: MatchKind, pattern: str) -> tuple[int, str | None]:
    """Return the number of literal characters, and the pattern in RE2's syntax where it is one."""
    match kind:
        case MatchKind.EXACT | MatchKind.PREFIX:
            return len(pattern), None
        case MatchKind.GLOB:
            if "[" in pattern:
                raise _refuse(rule_id, "match", "a glob knows * and ? only; for sets write regex:")
            literal = sum(character not in "*?" for character in pattern)
            regex = glob_regex(pattern)
        case MatchKind.REGEX:
            literal = next((i for i, character in enumerate(pattern) if character in _SPECIAL), len(pattern))
            regex = pattern
    try:
        re2.compile(regex, re2_options())
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise _refuse(rule_id, "match", f"the pattern cannot be used: {reason}") from None
    return literal, regex
