"""`mlxctl cloud`: providers, rules, and whether anything may leave this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxctl.call import Call, Document
from mlxctl.change import show_change
from mlxctl.output import format_pairs, format_table
from mlxctl.verb import Verb, changes, make_app

app = make_app("Send requests for some names to other servers.")
provider = make_app("Upstream servers.")
rule = make_app("Which names go where.")
app.add_typer(provider, name="provider")
app.add_typer(rule, name="rule")

ProviderId = Annotated[str, typer.Argument(metavar="ID", help="Name of the provider.")]
BaseURL = Annotated[str, typer.Option("--base-url", metavar="URL", help="Address up to and including /v1.")]
Kind = Annotated[str | None, typer.Option("--kind", metavar="openai", help="Wire protocol.")]
AuthEnv = Annotated[
    str | None,
    typer.Option("--auth-env", metavar="NAME", help="Environment variable of the daemon that holds the key."),
]
RuleId = Annotated[str, typer.Argument(metavar="ID", help="Name of the rule.")]
NewRuleId = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="Name of the rule; made from the match when left out.")
]
Match = Annotated[
    str, typer.Option("--match", metavar="PATTERN", help="exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN.")
]
Mode = Annotated[
    str, typer.Option("--mode", metavar="always|never", help="Send matching names out, or keep them here.")
]
To = Annotated[list[str] | None, typer.Option("--to", metavar="PROVIDER/MODEL", help="Where to; one for always.")]
Priority = Annotated[int | None, typer.Option("--priority", metavar="N", help="Higher goes first; 100 when left out.")]
Name = Annotated[str, typer.Argument(metavar="MODEL", help="The name that a client asks for.")]


@app.command("show", cls=Verb)
def show(ctx: typer.Context) -> None:
    """Whether the cloud is on, providers and rules."""
    call = Call.of(ctx)
    call.show(call.ask("cloud.show"), _format)


@app.command("enable", cls=changes("cloud.enable"))
def enable(ctx: typer.Context) -> None:
    """Let rules send requests to providers."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.enable"))


@app.command("disable", cls=changes("cloud.disable"))
def disable(ctx: typer.Context) -> None:
    """Send nothing to providers from now on."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.disable"))


@provider.command("add", cls=changes("cloud.provider.add"))
def add_provider(
    ctx: typer.Context, identifier: ProviderId, base_url: BaseURL, kind: Kind = None, auth_env: AuthEnv = None
) -> None:
    """Add an upstream server, or change one."""
    call = Call.of(ctx)
    given = _without_none(kind=kind, auth_env=auth_env)
    show_change(call, call.change("cloud.provider.add", id=identifier, base_url=base_url, **given))


@provider.command("list", cls=Verb)
def list_providers(ctx: typer.Context) -> None:
    """The upstream servers."""
    call = Call.of(ctx)
    call.show(call.ask_all("cloud.provider.list", "providers"), _format_providers)


@provider.command("remove", cls=changes("cloud.provider.remove"))
def remove_provider(ctx: typer.Context, identifier: ProviderId) -> None:
    """Remove an upstream server that no rule uses."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.provider.remove", id=identifier))


@rule.command("add", cls=changes("cloud.rule.add"))
def add_rule(
    ctx: typer.Context,
    match: Match,
    identifier: NewRuleId = None,
    mode: Mode = "always",
    to: To = None,
    priority: Priority = None,
) -> None:
    """Add a rule: which names it is for, and where they go."""
    call = Call.of(ctx)
    targets = [target.strip() for item in to or [] for target in item.split(",")]
    given = _without_none(id=identifier, to=targets or None, priority=priority)
    show_change(call, call.change("cloud.rule.add", match=match, mode=mode, **given))


@rule.command("list", cls=Verb)
def list_rules(ctx: typer.Context) -> None:
    """The rules in the order in which they are tried."""
    call = Call.of(ctx)
    call.show(call.ask_all("cloud.rule.list", "rules"), _format_rules)


@rule.command("remove", cls=changes("cloud.rule.remove"))
def remove_rule(ctx: typer.Context, identifier: RuleId) -> None:
    """Remove a rule."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.rule.remove", id=identifier))


@rule.command("explain", cls=Verb)
def explain(ctx: typer.Context, model: Name) -> None:
    """Say where a request for a name would go, and why; sends nothing."""
    call = Call.of(ctx)
    call.show(call.ask("cloud.rule.explain", model=model), _format_explanation)


def _without_none(**given: object) -> Document:
    return {name: value for name, value in given.items() if value is not None}


def _format(document: Document) -> str:
    state = "on" if document["enabled"] else "off: no request leaves this machine (mlxctl cloud enable)"
    return "\n\n".join([f"cloud: {state}", _format_providers(document), _format_rules(document)])


def _format_providers(document: Document) -> str:
    if not document["providers"]:
        return "no provider; mlxctl cloud provider add ID --base-url URL"
    return format_table(
        ["PROVIDER", "KIND", "BASE URL", "KEY FROM"],
        [(item["id"], item["kind"], item["base_url"], item.get("auth_env")) for item in document["providers"]],
    )


def _format_rules(document: Document) -> str:
    if not document["rules"]:
        return "no rule; mlxctl cloud rule add ID --match PATTERN --to PROVIDER/MODEL"
    return format_table(
        ["RULE", "MATCH", "MODE", "TO", "PRIORITY"],
        [
            (item["id"], item["match"], item["mode"], ", ".join(item["to"]) or None, item["priority"])
            for item in document["rules"]
        ],
    )


def _format_explanation(document: Document) -> str:
    parts = [
        format_pairs(
            [
                ("model", document["model"]),
                ("alias of", document.get("alias_of")),
                ("route", document["route"]),
                ("rule", document.get("rule")),
                ("target", document.get("target")),
                ("reason", document.get("reason")),
            ]
        )
    ]
    if document.get("rules"):
        parts.append(format_table(["RULE", "VERDICT"], [(item["id"], item["verdict"]) for item in document["rules"]]))
    return "\n\n".join(parts)
