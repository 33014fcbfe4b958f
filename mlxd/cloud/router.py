"""Route a request by its model's name, before anything asks whether that model is here.

Owns the compiled rules of the current settings. A settings participant: it checks that rules, targets and providers fit
together, so that a provider in use cannot go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mlxd.cloud.rules import MatchKind, Mode, Rule, RuleSet, compile_rules
from mlxd.cloud.secret import Secrets
from mlxd.protocol.errors import CloudDisabled, InvalidValue, MlxdError
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import CloudSettings, ProviderSettings, Settings


class LiveSettings(Protocol):
    """What the router reads of the settings store."""

    @property
    def current(self) -> Settings:
        """The snapshot in force."""


@dataclass(frozen=True, slots=True)
class CloudRoute:
    """One target. Holds the provider as it was when the request came, whatever changes later."""

    rule_id: str
    provider_id: str
    provider: ProviderSettings
    model: str  # its name at the upstream

    @property
    def target(self) -> str:
        """PROVIDER/MODEL."""
        return f"{self.provider_id}/{self.model}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes: here, to the cloud, or here and then to the cloud if a trigger comes.

    Attributes:
        asks_local: whether this machine is asked first.
        routes: the targets of the cloud, in order; none where nothing may leave the machine.
        triggers: the codes of local errors after which the cloud is asked.
        rule_id: the rule that decided, if one did.
    """

    asks_local: bool
    routes: tuple[CloudRoute, ...] = ()
    triggers: frozenset[str] = frozenset()
    rule_id: str | None = None

    def catches(self, error: MlxdError) -> bool:
        """Tell whether the cloud is asked after this local error."""
        return bool(self.routes) and error.code in self.triggers


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `explain` says of one rule."""

    rule_id: str
    match: str
    mode: str
    priority: int
    targets: tuple[str, ...]
    enabled: bool
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
    targets: tuple[str, ...]  # that would be asked, in this order
    triggers: tuple[str, ...]  # local failures after which they would be
    enabled: bool
    is_local: bool
    rules: tuple[Verdict, ...]  # in the order in which they are tried


class Router:
    """Routes names by the rules of the settings in force."""

    def __init__(
        self,
        store: LiveSettings,
        is_local: Callable[[str], bool],
        alias_target: Callable[[str], str],
        secrets: Secrets,
    ) -> None:
        """Compile the current rules.

        Args:
            store: whose `current` is read at every request.
            is_local: whether the machine has a model of this name.
            alias_target: the model that a name means here, which may be itself.
            secrets: where keys are looked up, for warnings.
        """
        self._store = store
        self._is_local = is_local
        self._alias_target = alias_target
        self._secrets = secrets
        self._compiled_from: CloudSettings = store.current.cloud
        self._rules = compile_rules(self._compiled_from)

    @property
    def rules(self) -> RuleSet:
        """The rules in force, in the order in which they are tried."""
        cloud = self._store.current.cloud
        if cloud is not self._compiled_from:
            if cloud != self._compiled_from:  # a commit of another setting brings an equal table
                self._rules = compile_rules(cloud)
            self._compiled_from = cloud
        return self._rules

    def route(self, name: str, meant: str | None = None, *, local_only: bool = False) -> Decision:
        """Return where a request goes.

        Args:
            name: of the model, as the client calls it.
            meant: the model that it is an alias of, if it is one; rules for that count too.
            local_only: the client's wish to stay on this machine.

        Raises:
            CloudDisabled: a rule always sends the name to the cloud, the cloud is off, and no local model has the name.
        """
        rule = None if local_only else self.rules.match(name, meant or name)
        if rule is None:
            return Decision(asks_local=True)
        cloud = self._store.current.cloud
        if rule.mode is Mode.NEVER or (not cloud.enabled and rule.mode is Mode.FALLBACK):
            return Decision(asks_local=True, rule_id=rule.id)
        if cloud.enabled:
            routes = tuple(
                CloudRoute(rule.id, target.provider_id, cloud.providers[target.provider_id], target.model)
                for target in rule.targets
            )
            return Decision(rule.mode is Mode.FALLBACK, routes, rule.triggers, rule.id)
        if self._is_local(name):
            return Decision(asks_local=True)
        raise CloudDisabled(
            f"rule {rule.id!r} sends {name!r} to {rule.targets[0]}, and the cloud is off",
            hint="mlxctl cloud enable",
            param="model",
            data={"rule": rule.id, "target": str(rule.targets[0])},
        )

    def explain(self, name: str, assume: str | None = None) -> Explanation:
        """Run the live matcher on *name* and say what every rule makes of it; sends nothing.

        Args:
            name: of a model.
            assume: the code of a local failure that is taken to have happened.
        """
        meant = self._alias_target(name)
        decisive = self.rules.match(name, meant)
        names = {name, meant}
        matching = {rule.id for each in names for rule in self.rules.matching(each)}
        outcome, reason, decision = self._outcome(name, meant, decisive, assume)
        return Explanation(
            model=name,
            alias_of=None if meant == name else meant,
            outcome=outcome,
            reason=reason,
            rule_id=None if decisive is None else decisive.id,
            targets=tuple(route.target for route in decision.routes) if outcome == "cloud" else (),
            triggers=tuple(sorted(decision.triggers)),
            enabled=self._store.current.cloud.enabled,
            is_local=self._is_local(name),
            rules=tuple(
                _verdict(rule, matches=rule.id in matching, decides=rule is decisive) for rule in self.rules.rules
            ),
        )

    def _outcome(self, name: str, meant: str, rule: Rule | None, assume: str | None) -> tuple[str, str, Decision]:
        try:
            decision = self.route(name, meant)
        except CloudDisabled as error:
            return error.code, error.message, Decision(asks_local=False)
        if not decision.asks_local:
            return "cloud", f"rule {decision.rule_id!r} always sends it to {decision.routes[0].target}", decision
        if rule is None:
            reason = "no rule matches"
        elif rule.mode is Mode.NEVER:
            reason = f"rule {rule.id!r} keeps it on this machine"
        elif decision.routes:
            reason = f"rule {rule.id!r} asks this machine first"
        else:
            reason = f"rule {rule.id!r} would send it to {rule.targets[0]}, but the cloud is off"
        failure = assume
        if failure is None and not self._is_local(name):
            failure = "model_not_found"
            reason += ", and no local model has this name"
        if failure is None:
            return "local", reason, decision
        if failure in decision.triggers:
            return "cloud", f"{reason}; after {failure} it sends to {decision.routes[0].target}", decision
        return failure, reason, decision

    def exact_names(self) -> dict[str, CloudRoute]:
        """Return the names that exact rules send to the cloud now, for the list of models."""
        rules = (rule for rule in self.rules.rules if rule.kind is MatchKind.EXACT and rule.enabled)
        routes = {}
        if self._store.current.cloud.enabled:
            for name in (rule.pattern for rule in rules):
                decision = self.route(name, self._alias_target(name))
                if not decision.asks_local:
                    routes[name] = decision.routes[0]
        return routes

    def check(self, new: Settings, *, force: bool = False) -> list[str]:  # noqa: ARG002  (there is nothing to force)
        """Refuse rules and providers that do not fit together; warn about keys that are not in the environment.

        Raises:
            InvalidValue: names the setting, and for a provider that is still used, the rules that use it.
        """
        self._check_removed(new.cloud)
        compile_rules(new.cloud)
        found = (
            self._secrets.environment_problem(name, provider.auth) for name, provider in new.cloud.providers.items()
        )
        return [problem for problem in found if problem is not None]

    async def problems(self) -> list[str]:
        """Return a sentence for each provider in force whose key is not there; a keychain is left alone."""
        providers = self._store.current.cloud.providers.items()
        # A keychain may ask a person.
        asked = [(name, provider.auth) for name, provider in providers if "keychain" not in (provider.auth or {})]
        found = await asyncio.gather(*(self._secrets.problem(name, auth) for name, auth in asked))
        return [problem for problem in found if problem is not None]

    def _check_removed(self, new: CloudSettings) -> None:
        for provider_id in self._store.current.cloud.providers.keys() - new.providers.keys():
            prefix = f"{provider_id}/"
            rules = new.rules.items()
            users = sorted(rule_id for rule_id, rule in rules if any(to.startswith(prefix) for to in rule.to))
            if users:
                raise InvalidValue(
                    f"provider {provider_id!r} is used by {', '.join(users)}; remove the rules first",
                    param=format_path(("cloud", "providers", provider_id)),
                    hint=f"mlxctl cloud provider remove {provider_id} --cascade",
                    data={"rules": users},
                )


def _verdict(rule: Rule, *, matches: bool, decides: bool) -> Verdict:
    targets = tuple(str(target) for target in rule.targets)
    return Verdict(rule.id, rule.match, rule.mode.value, rule.priority, targets, rule.enabled, matches, decides)
