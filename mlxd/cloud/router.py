"""Where a request goes, decided by its model's name before anything asks whether that model is here.

Owns the compiled rules of the current settings. A settings participant: it checks that rules, targets and providers fit
together, so that a provider in use cannot go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mlxd.cloud.rules import MatchKind, Mode, Rule, RuleSet, compile_rules
from mlxd.cloud.secret import read_secret
from mlxd.protocol.errors import CloudDisabled, InvalidValue, SecretMissing
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import CloudSettings, ProviderSettings, Settings


class LiveSettings(Protocol):
    """What the router reads of the settings store."""

    @property
    def current(self) -> Settings:
        """The snapshot in force."""


@dataclass(frozen=True, slots=True)
class LocalRoute:
    """This machine answers, or says that it has no such model."""

    rule_id: str | None = None  # the never rule that said so


@dataclass(frozen=True, slots=True)
class CloudRoute:
    """An upstream answers. Holds the provider as it was when the request came, whatever changes later."""

    rule_id: str
    provider_id: str
    provider: ProviderSettings
    model: str  # its name at the upstream

    @property
    def target(self) -> str:
        """PROVIDER/MODEL."""
        return f"{self.provider_id}/{self.model}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `explain` says of one rule."""

    rule_id: str
    match: str
    mode: str
    priority: int
    target: str | None
    matches: bool
    decides: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a request for a name would go, and what every rule says of it; JSON-able by `dataclasses.asdict`."""

    model: str
    alias_of: str | None  # rules for this model count too
    outcome: str  # local, cloud, or the code of the error that the request would get
    reason: str
    rule_id: str | None
    target: str | None
    enabled: bool
    is_local: bool
    rules: tuple[Verdict, ...]  # in the order in which they are tried


class Router:
    """Routes names by the rules of the settings in force."""

    def __init__(self, store: LiveSettings, is_local: Callable[[str], bool], environ: Mapping[str, str]) -> None:
        """Compile the current rules.

        Args:
            store: whose `current` is read at every request.
            is_local: whether the machine has a model of this name.
            environ: where keys are looked up, for warnings.
        """
        self._store = store
        self._is_local = is_local
        self._environ = environ
        self._compiled_from: CloudSettings = store.current.cloud
        self._rules = compile_rules(self._compiled_from)

    @property
    def rules(self) -> RuleSet:
        """The rules in force, in the order in which they are tried."""
        cloud = self._store.current.cloud
        if cloud is not self._compiled_from:
            self._rules, self._compiled_from = compile_rules(cloud), cloud
        return self._rules

    def route(self, name: str, *, local_only: bool = False) -> LocalRoute | CloudRoute:
        """Return where a request for *name* goes; *local_only* is the client's wish to stay on this machine.

        Raises:
            CloudDisabled: a rule sends the name to the cloud, the cloud is off, and no local model has the name.
        """
        rule = None if local_only else self._match(name)
        if rule is None:
            return LocalRoute()
        if rule.target is None:
            return LocalRoute(rule.id)
        cloud = self._store.current.cloud
        if cloud.enabled:
            provider_id = rule.target.provider_id
            return CloudRoute(rule.id, provider_id, cloud.providers[provider_id], rule.target.model)
        if self._is_local(name):
            return LocalRoute()
        raise CloudDisabled(
            f"rule {rule.id!r} sends {name!r} to {rule.target}, and the cloud is off",
            hint="mlxctl cloud enable",
            param="model",
            data={"rule": rule.id, "target": str(rule.target)},
        )

    def _match(self, name: str) -> Rule | None:
        return self.rules.match(name, self._alias_of(name))

    def _alias_of(self, name: str) -> str | None:
        """Return the model that *name* is an alias of."""
        models = self._store.current.models
        return next((model_id for model_id, model in models.items() if name in model.aliases), None)

    def explain(self, name: str) -> Explanation:
        """Run the live matcher on *name* and say what every rule makes of it; sends nothing."""
        decisive = self._match(name)
        names = {name, self._alias_of(name) or name}
        verdicts = tuple(_verdict(rule, names, decides=rule is decisive) for rule in self.rules.rules)
        outcome, reason = self._outcome(name, decisive)
        return Explanation(
            model=name,
            alias_of=self._alias_of(name),
            outcome=outcome,
            reason=reason,
            rule_id=None if decisive is None else decisive.id,
            target=str(decisive.target) if decisive is not None and outcome == "cloud" else None,
            enabled=self._store.current.cloud.enabled,
            is_local=self._is_local(name),
            rules=verdicts,
        )

    def _outcome(self, name: str, rule: Rule | None) -> tuple[str, str]:
        try:
            route = self.route(name)
        except CloudDisabled as error:
            return error.code, error.message
        if isinstance(route, CloudRoute):
            return "cloud", f"rule {route.rule_id!r} always sends it to {route.target}"
        if rule is None:
            reason = "no rule matches"
        elif rule.mode is Mode.NEVER:
            reason = f"rule {rule.id!r} keeps it on this machine"
        else:
            reason = f"rule {rule.id!r} would send it to {rule.target}, but the cloud is off and the model is here"
        if self._is_local(name):
            return "local", reason
        return "model_not_found", f"{reason}, and no local model has this name"

    def exact_names(self) -> dict[str, CloudRoute]:
        """Return the names that exact rules send to the cloud now, for the list of models."""
        names = (rule.match.removeprefix("exact:") for rule in self.rules.rules if rule.kind is MatchKind.EXACT)
        routes = {}
        if self._store.current.cloud.enabled:
            for name in names:
                route = self.route(name)
                if isinstance(route, CloudRoute):
                    routes[name] = route
        return routes

    def check(self, new: Settings, *, force: bool = False) -> list[str]:  # noqa: ARG002  (there is nothing to force)
        """Refuse rules and providers that do not fit together; warn about keys that are not there.

        Raises:
            InvalidValue: names the setting, and for a provider that is still used, the rules that use it.
        """
        self._check_removed(new.cloud)
        compile_rules(new.cloud)
        if new.cloud == self._store.current.cloud:
            return []  # another setting changes
        return list(self._missing_keys(new.cloud))

    def problems(self) -> list[str]:
        """Return a sentence for each provider in force whose key is not there."""
        return list(self._missing_keys(self._store.current.cloud))

    def plan(self, old: Settings, new: Settings) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: a new rule takes effect with the next request, and running ones end as they began."""
        return {}

    def apply(self, old: Settings, new: Settings) -> dict[str, Any]:  # noqa: ARG002
        """Do nothing: every request reads the settings in force."""
        return {}

    def _check_removed(self, new: CloudSettings) -> None:
        for provider_id in self._store.current.cloud.providers.keys() - new.providers.keys():
            prefix = f"{provider_id}/"
            rules = new.rules.items()
            users = sorted(rule_id for rule_id, rule in rules if any(to.startswith(prefix) for to in rule.to))
            if users:
                raise InvalidValue(
                    f"provider {provider_id!r} is used by {', '.join(users)}; remove the rules first",
                    param=format_path(("cloud", "providers", provider_id)),
                    hint=f"mlxctl cloud rule remove {users[0]}",
                    data={"rules": users},
                )

    def _missing_keys(self, cloud: CloudSettings) -> Iterator[str]:
        for provider_id, provider in cloud.providers.items():
            try:
                read_secret(provider_id, provider.auth, self._environ)
            except SecretMissing as error:
                yield error.message


def _verdict(rule: Rule, names: Iterable[str], *, decides: bool) -> Verdict:
    target = None if rule.target is None else str(rule.target)
    return Verdict(rule.id, rule.match, rule.mode.value, rule.priority, target, any(map(rule.matches, names)), decides)
