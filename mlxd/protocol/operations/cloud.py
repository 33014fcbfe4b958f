"""Whether requests may leave the machine, providers, and what bounds them: breakers, budget, prices."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, flag, text

_AUTH = {
    "auth": text("Where the key is: env:NAME, file:PATH, keychain:SERVICE/NAME, or none.", required=False),
    "auth_env": text("Environment variable of the daemon that holds the key.", required=False),
}
_TIMEOUTS = {
    "connect": text("How long a connection may take.", required=False),
    "first_token": text("Longest silence before the first content of a stream.", required=False),
    "idle": text("Longest silence within a stream.", required=False),
    "total": text("How long a whole answer may take.", required=False),
}
_ID = text("Name of the provider.")
_TARGET = text("PROVIDER/MODEL.")

TABLE = (
    Operation("cloud.show", "Providers and rules, and whether the cloud is on."),
    Operation("cloud.enable", "Let rules send requests to providers.", mutates=True, commits=True),
    Operation("cloud.disable", "Send nothing to providers from now on.", mutates=True, commits=True),
    Operation(
        "cloud.provider.add",
        "Add an upstream server.",
        {
            "id": _ID,
            "base_url": text("Address up to and including /v1."),
            "kind": text("Wire protocol: openai or anthropic.", required=False),
            "proxy": text("HTTP proxy on the way to it, or none.", required=False),
            **_AUTH,
            **_TIMEOUTS,
        },
        mutates=True,
        commits=True,
    ),
    Operation(
        "cloud.provider.set",
        "Change what is given of an upstream server.",
        {
            "id": _ID,
            "base_url": text("Address up to and including /v1.", required=False),
            "kind": text("Wire protocol: openai or anthropic.", required=False),
            "proxy": text("HTTP proxy on the way to it, or none.", required=False),
            **_AUTH,
            **_TIMEOUTS,
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.provider.list", "The upstream servers.", PAGE),
    Operation("cloud.provider.show", "One upstream server, with the rules that use it.", {"id": _ID}),
    Operation(
        "cloud.provider.remove",
        "Remove an upstream server that no rule uses.",
        {"id": text("Its name."), "cascade": flag("Take it out of the rules as well; one that is left empty goes.")},
        mutates=True,
        commits=True,
    ),
    Operation(
        "cloud.provider.test",
        "Call an upstream server once, whether the cloud is on or off, and say what came back.",
        {"id": _ID, "model": text("Ask this model for one token instead of for the list of models.", required=False)},
    ),
    Operation("cloud.breaker.list", "Targets that were tried lately, and whether they are left alone.", PAGE),
    Operation(
        "cloud.breaker.reset",
        "Ask a target again that was left alone.",
        {"target": text("PROVIDER/MODEL; all when left out.", required=False)},
        mutates=True,
    ),
    Operation("cloud.budget.show", "What today may cost, and what it has cost."),
    Operation(
        "cloud.budget.set",
        "Bound what a day may cost.",
        {
            "usd_per_day": text("US dollars, or none.", required=False),
            "requests_per_day": text("A number of requests, or none.", required=False),
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.price.list", "What targets cost.", PAGE),
    Operation(
        "cloud.price.set",
        "Say what a target costs.",
        {
            "target": _TARGET,
            "input": text("US dollars per million tokens of prompts."),
            "output": text("US dollars per million tokens of answers."),
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.price.remove", "Forget what a target costs.", {"target": _TARGET}, mutates=True, commits=True),
)
