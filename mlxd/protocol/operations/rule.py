"""Which names go to providers."""

from __future__ import annotations

from mlxd.protocol.operations.row import PAGE, Operation, Param, ParamType, flag, text

_ID = text("Its name.")
_TO = Param(ParamType.TEXTS, "PROVIDER/MODEL, tried in this order; none for never.", required=False)
_ON = Param(ParamType.TEXTS, "Local failures after which a fallback rule sends.", required=False)
_PRIORITY = Param(ParamType.INTEGER, "Higher goes first; 100 when left out.", required=False)

TABLE = (
    Operation(
        "cloud.rule.add",
        "Add a routing rule.",
        {
            "id": text("Name of the rule; made from the match when left out.", required=False),
            "match": text("exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN."),
            "mode": text("always, fallback or never."),
            "on": _ON,
            "to": _TO,
            "priority": _PRIORITY,
        },
        mutates=True,
        commits=True,
    ),
    Operation(
        "cloud.rule.set",
        "Change what is given of a rule.",
        {
            "id": _ID,
            "match": text("exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN.", required=False),
            "mode": text("always, fallback or never.", required=False),
            "on": _ON,
            "to": _TO,
            "priority": _PRIORITY,
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.rule.list", "The rules in the order in which they are tried.", PAGE),
    Operation("cloud.rule.show", "One rule, and its place in the order.", {"id": _ID}),
    Operation(
        "cloud.rule.move",
        "Have a rule tried earlier or later, by its priority; one of before, after, first and last.",
        {
            "id": _ID,
            "before": text("The rule that comes right after it then.", required=False),
            "after": text("The rule that comes right before it then.", required=False),
            "first": flag("Before all others of its kind: never rules, or the rest."),
            "last": flag("After all others of its kind."),
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.rule.enable", "Have a rule count.", {"id": _ID}, mutates=True, commits=True),
    Operation("cloud.rule.disable", "Keep a rule, and do without it.", {"id": _ID}, mutates=True, commits=True),
    Operation("cloud.rule.remove", "Remove a rule.", {"id": _ID}, mutates=True, commits=True),
    Operation(
        "cloud.rule.explain",
        "Say where a request for a name would go, and why.",
        {
            "model": text("The name asked for."),
            "assume": text("A local failure that is taken to have happened.", required=False),
        },
    ),
)
