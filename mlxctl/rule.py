"""`mlxctl cloud rule`: which names go where."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxctl.call import Call, Document, without_none
from mlxctl.change import show_change
from mlxctl.output import format_pairs, format_table
from mlxctl.verb import Verb, changes, make_app
from mlxd.protocol.trigger import DEFAULT_TRIGGERS

app = make_app("Which names go where.")

_MATCH_HELP = "exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN."
_MODE_HELP = "Send matching names out, send them after a local failure, or keep them here."
_ON_HELP = "For fallback: local failures after which it sends, with commas; those that are no mistake when left out."

Id = Annotated[str, typer.Argument(metavar="ID", help="Name of the rule.")]
NewId = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="Name of the rule; made from the match when left out.")
]
Match = Annotated[str, typer.Option("--match", metavar="PATTERN", help=_MATCH_HELP)]
OtherMatch = Annotated[str | None, typer.Option("--match", metavar="PATTERN", help=_MATCH_HELP)]
Mode = Annotated[str, typer.Option("--mode", metavar="always|fallback|never", help=_MODE_HELP)]
OtherMode = Annotated[str | None, typer.Option("--mode", metavar="always|fallback|never", help=_MODE_HELP)]
On = Annotated[list[str] | None, typer.Option("--on", metavar="FAILURE", help=_ON_HELP)]
To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="PROVIDER/MODEL", help="Where to; several are tried in order. None for never."),
]
Priority = Annotated[int | None, typer.Option("--priority", metavar="N", help="Higher goes first; 100 when left out.")]
Name = Annotated[str, typer.Argument(metavar="MODEL", help="The name that a client asks for.")]
Assume = Annotated[
    str | None,
    typer.Option("--assume", metavar="FAILURE", help="Take this local failure to have happened, such as queue_full."),
]
Before = Annotated[str | None, typer.Option("--before", metavar="RULE", help="Right before this one.")]
After = Annotated[str | None, typer.Option("--after", metavar="RULE", help="Right after this one.")]
First = Annotated[bool, typer.Option("--first", help="Before all others; never rules stay in front of the rest.")]
Last = Annotated[bool, typer.Option("--last", help="After all others.")]


@app.command("add", cls=changes("cloud.rule.add"))
def add(
    ctx: typer.Context,
    match: Match,
    identifier: NewId = None,
    mode: Mode = "always",
    on: On = None,
    to: To = None,
    priority: Priority = None,
) -> None:
    """Add a rule: which names it is for, and where they go."""
    call = Call.of(ctx)
    given = without_none(id=identifier, on=_split(on), to=_split(to), priority=priority)
    show_change(call, call.change("cloud.rule.add", match=match, mode=mode, **given))


@app.command("set", cls=changes("cloud.rule.set"))
def set_one(
    ctx: typer.Context,
    identifier: Id,
    match: OtherMatch = None,
    mode: OtherMode = None,
    on: On = None,
    to: To = None,
    priority: Priority = None,
) -> None:
    """Change what is given of a rule."""
    call = Call.of(ctx)
    given = without_none(match=match, mode=mode, on=_split(on), to=_split(to), priority=priority)
    show_change(call, call.change("cloud.rule.set", id=identifier, **given))


@app.command("list", cls=Verb)
def list_all(ctx: typer.Context) -> None:
    """The rules in the order in which they are tried."""
    call = Call.of(ctx)
    call.show(call.ask_all("cloud.rule.list", "rules"), format_list)


@app.command("show", cls=Verb)
def show(ctx: typer.Context, identifier: Id) -> None:
    """One rule, and its place in the order."""
    call = Call.of(ctx)
    call.show(call.ask("cloud.rule.show", id=identifier), _format_one)


@app.command("move", cls=changes("cloud.rule.move"))
def move(
    ctx: typer.Context,
    identifier: Id,
    before: Before = None,
    after: After = None,
    first: First = False,
    last: Last = False,
) -> None:
    """Have a rule tried earlier or later: changes priorities, as few as can be."""
    call = Call.of(ctx)
    given = without_none(before=before, after=after, first=first or None, last=last or None)
    show_change(call, call.change("cloud.rule.move", id=identifier, **given))


@app.command("enable", cls=changes("cloud.rule.enable"))
def enable(ctx: typer.Context, identifier: Id) -> None:
    """Have a rule count."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.rule.enable", id=identifier))


@app.command("disable", cls=changes("cloud.rule.disable"))
def disable(ctx: typer.Context, identifier: Id) -> None:
    """Keep a rule, and do without it."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.rule.disable", id=identifier))


@app.command("remove", cls=changes("cloud.rule.remove"))
def remove(ctx: typer.Context, identifier: Id) -> None:
    """Remove a rule."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.rule.remove", id=identifier))


@app.command("explain", cls=Verb)
def explain(ctx: typer.Context, model: Name, assume: Assume = None) -> None:
    """Say where a request for a name would go, and why; sends nothing."""
    call = Call.of(ctx)
    call.show(call.ask("cloud.rule.explain", model=model, **without_none(assume=assume)), _format_explanation)


def _split(items: list[str] | None) -> list[str] | None:
    """Return what was given in several options, or in one with commas."""
    return [part.strip() for item in items or [] for part in item.split(",")] or None


def format_list(document: Document) -> str:
    """Return the rules as a table."""
    if not document["rules"]:
        return "no rule; mlxctl cloud rule add ID --match PATTERN --to PROVIDER/MODEL"
    return format_table(
        ["RULE", "MATCH", "MODE", "ON", "TO", "PRIORITY"],
        [
            (
                item["id"] if item.get("enabled", True) else f"{item['id']} (disabled)",
                item["match"],
                item["mode"],
                _triggers(item),
                ", ".join(item["to"]) or None,
                item["priority"],
            )
            for item in document["rules"]
        ],
        optional=["ON"],
    )


def _triggers(item: Document) -> str | None:
    """Return the failures that a rule is for; those of every such rule by one word."""
    given = list(item.get("on", ()))
    usual = [trigger for trigger in given if trigger in DEFAULT_TRIGGERS]
    if len(usual) < len(DEFAULT_TRIGGERS):
        return ", ".join(given) or None
    return ", ".join(["failures", *(trigger for trigger in given if trigger not in DEFAULT_TRIGGERS)])


def _format_one(document: Document) -> str:
    return format_pairs(
        [
            ("rule", document["id"]),
            ("match", document["match"]),
            ("mode", document["mode"]),
            ("on", ", ".join(document["on"]) or None),
            ("to", ", ".join(document["to"]) or None),
            ("priority", document["priority"]),
            ("enabled", "yes" if document["enabled"] else "no"),
            ("place", f"{document['place']} of {document['of']}"),
        ]
    )


def _format_explanation(document: Document) -> str:
    triggers = ", ".join(document.get("triggers", ()))
    parts = [
        format_pairs(
            [
                ("model", document["model"]),
                ("alias of", document.get("alias_of")),
                ("route", document["route"]),
                ("rule", document.get("rule")),
                ("target", ", then ".join(document.get("targets") or ()) or document.get("target")),
                ("reason", document.get("reason")),
                ("cloud after", triggers if triggers and document["route"] != "cloud" else None),
            ]
        )
    ]
    if document.get("rules"):
        parts.append(format_table(["RULE", "VERDICT"], [(item["id"], item["verdict"]) for item in document["rules"]]))
    return "\n\n".join(parts)
