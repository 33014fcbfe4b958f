"""Providers and rules."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, Param, ParamType, text

TABLE = (
    Operation("cloud.show", "Providers and rules, and whether the cloud is on."),
    Operation("cloud.enable", "Let rules send requests to providers.", mutates=True, commits=True),
    Operation("cloud.disable", "Send nothing to providers from now on.", mutates=True, commits=True),
    Operation(
        "cloud.provider.add",
        "Add an upstream server.",
        {
            "id": text("Name of the provider."),
            "base_url": text("Address up to and including /v1."),
            "kind": text("Wire protocol: openai.", required=False),
            "auth_env": text("Environment variable of the daemon that holds the key.", required=False),
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.provider.list", "The upstream servers.", PAGE),
    Operation(
        "cloud.provider.remove",
        "Remove an upstream server that no rule uses.",
        {"id": text("Its name.")},
        mutates=True,
        commits=True,
    ),
    Operation(
        "cloud.rule.add",
        "Add a routing rule.",
        {
            "id": text("Name of the rule; made from the match when left out.", required=False),
            "match": text("exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN."),
            "mode": text("always or never."),
            "to": Param(ParamType.TEXTS, "PROVIDER/MODEL; one for always, none for never.", required=False),
            "priority": Param(ParamType.INTEGER, "Higher goes first; 100 when left out.", required=False),
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.rule.list", "The rules in the order in which they are tried.", PAGE),
    Operation("cloud.rule.remove", "Remove a rule.", {"id": text("Its name.")}, mutates=True, commits=True),
    Operation(
        "cloud.rule.explain",
        "Say where a request for a name would go, and why.",
        {"model": text("The name asked for.")},
    ),
)
