"""Which rule a model's name matches. Pure: no I/O, no clock, no settings store.

The order is total: `never` rules first, then higher priority, exact before prefix before glob before regex, the longer
literal part, the id. A match is always one of the whole name. Globs and regexes run on RE2, in time linear in the name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

import re2

from mlxd.protocol.errors import InvalidValue
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import CloudSettings, RuleSettings

_MAX_PATTERN_CHARACTERS = 256
# Bounds RE2's program and its cache of states; what needs more is refused when it is compiled.
_MAX_MEMORY_BYTES = 1 << 18
# Characters that are not plain text in RE2's syntax.
_SPECIAL = frozenset("\\.+*?()|[]{}^$")


class Mode(Enum):
    """What a rule does with a name that it matches."""

    NEVER = "never"
    ALWAYS = "always"


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
    kind: MatchKind
    literal_characters: int
    target: Target | None  # None for never
    matches: Callable[[str], bool]

    @property
    def order(self) -> tuple[bool, int, MatchKind, int, str]:
        """What rules are sorted by."""
        return (self.mode is not Mode.NEVER, -self.priority, self.kind, -self.literal_characters, self.id)


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one settings snapshot, in the order in which they are tried."""

    rules: tuple[Rule, ...]

    def match(self, name: str, alias_of: str | None = None) -> Rule | None:
        """Return the rule that decides for *name*, which may be an alias: a rule for the alias goes first.

        But a `never` rule for either keeps it here: a model that must stay does not leave under another name.
        """
        matching = [rule for rule in self.rules if rule.matches(name)]
        if alias_of is not None and alias_of != name:
            matching += [rule for rule in self.rules if rule.matches(alias_of)]
        return min(matching, key=lambda rule: rule.mode is not Mode.NEVER, default=None)


def compile_rules(cloud: CloudSettings) -> RuleSet:
    """Return the rules ready to match.

    Raises:
        InvalidValue: a pattern that does not compile, a target that is missing, surplus or leads to no provider.
    """
    rules = [_compile_rule(rule_id, rule, cloud.providers) for rule_id, rule in cloud.rules.items()]
    return RuleSet(tuple(sorted(rules, key=lambda rule: rule.order)))


def _compile_rule(rule_id: str, rule: RuleSettings, provider_ids: Iterable[str]) -> Rule:
    kind, pattern = _split(rule_id, rule.match)
    mode = Mode(rule.mode)
    target = _target(rule_id, rule, mode, provider_ids)
    literal, matches = _matcher(rule_id, kind, pattern)
    return Rule(rule_id, rule.match, mode, rule.priority, kind, literal, target, matches)


def _refuse(rule_id: str, name: str, reason: str) -> InvalidValue:
    key = format_path(("cloud", "rules", rule_id, name))
    return InvalidValue(f"{key}: {reason}", param=key, hint="mlxctl cloud rule list")


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
    if len(pattern) > _MAX_PATTERN_CHARACTERS:
        raise _refuse(rule_id, "match", f"the pattern has {len(pattern)} characters; at most {_MAX_PATTERN_CHARACTERS}")
    return kind, pattern


def _target(rule_id: str, rule: RuleSettings, mode: Mode, provider_ids: Iterable[str]) -> Target | None:
    if mode is Mode.NEVER:
        if rule.to:
            raise _refuse(rule_id, "to", "a never rule sends nowhere; leave `to` out")
        return None
    if len(rule.to) != 1:
        raise _refuse(rule_id, "to", f"an always rule has exactly one target PROVIDER/MODEL, not {len(rule.to)}")
    provider_id, _, model = rule.to[0].partition("/")
    if not provider_id or not model:
        raise _refuse(rule_id, "to", f"{rule.to[0]!r} is not PROVIDER/MODEL")
    if provider_id not in provider_ids:
        raise _refuse(rule_id, "to", f"there is no provider {provider_id!r}")
    return Target(provider_id, model)


def _matcher(rule_id: str, kind: MatchKind, pattern: str) -> tuple[int, Callable[[str], bool]]:
    """Return the number of literal characters and the test of a name."""
    match kind:
        case MatchKind.EXACT:
            return len(pattern), pattern.__eq__
        case MatchKind.PREFIX:
            return len(pattern), lambda name: name.startswith(pattern)
        case MatchKind.GLOB:
            if "[" in pattern:
                raise _refuse(rule_id, "match", "a glob knows * and ? only; for sets write regex:")
            literal = sum(character not in "*?" for character in pattern)
            wildcards = {"*": ".*", "?": "."}
            regex = "".join(wildcards.get(character, re2.escape(character)) for character in pattern)
            return literal, _full_match(rule_id, regex)
        case MatchKind.REGEX:
            literal = next((i for i, character in enumerate(pattern) if character in _SPECIAL), len(pattern))
            return literal, _full_match(rule_id, pattern)


def _full_match(rule_id: str, regex: str) -> Callable[[str], bool]:
    options = re2.Options()
    options.max_mem = _MAX_MEMORY_BYTES
    options.log_errors = False
    options.dot_nl = True
    options.never_capture = True
    try:
        compiled = re2.compile(regex, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise _refuse(rule_id, "match", f"the pattern cannot be used: {reason}") from None
    return lambda name: compiled.fullmatch(name) is not None
