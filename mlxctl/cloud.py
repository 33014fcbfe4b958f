"""`mlxctl cloud`: whether anything may leave this machine, what it may cost, and what is left alone."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxctl import provider, rule
from mlxctl.call import Call, Document, without_none
from mlxctl.change import show_change
from mlxctl.output import format_pairs, format_table, show_duration
from mlxctl.verb import Verb, changes, make_app
from mlxd.protocol.units import count

app = make_app("Send requests for some names to other servers.")
breaker = make_app("Targets that keep failing are left alone for a while.")
budget = make_app("What a day may cost.")
price = make_app("What targets cost.")
app.add_typer(provider.app, name="provider")
app.add_typer(rule.app, name="rule")
app.add_typer(breaker, name="breaker")
app.add_typer(budget, name="budget")
app.add_typer(price, name="price")

_MICRO = 1_000_000

Target = Annotated[str, typer.Argument(metavar="PROVIDER/MODEL", help="The target, as rules name it.")]
OneTarget = Annotated[
    str | None, typer.Argument(metavar="[PROVIDER/MODEL]", help="The target, as rules name it; all when left out.")
]
Usd = Annotated[
    str | None, typer.Option("--usd-per-day", metavar="USD|none", help="Most US dollars that a day (UTC) may cost.")
]
PerDay = Annotated[
    str | None,
    typer.Option("--requests-per-day", metavar="N|none", help="Most requests that a day (UTC) may send out."),
]
Input = Annotated[str, typer.Option("--input", metavar="USD", help="US dollars per million tokens of prompts.")]
Output = Annotated[str, typer.Option("--output", metavar="USD", help="US dollars per million tokens of answers.")]


@app.command("show", cls=Verb)
def show(ctx: typer.Context) -> None:
    """Whether the cloud is on, providers, rules, budget and breakers."""
    call = Call.of(ctx)
    call.show(call.ask("cloud.show"), _format)


@app.command("enable", cls=changes("cloud.enable"))
def enable(ctx: typer.Context) -> None:
    """Let rules send requests to providers."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.enable"))


@app.command("disable", cls=changes("cloud.disable"))
def disable(ctx: typer.Context) -> None:
    """Send nothing to providers from now on; answers that have begun end as they would have."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.disable"))


@breaker.command("list", cls=Verb)
def list_breakers(ctx: typer.Context) -> None:
    """The targets that were tried in the last minute or are left alone."""
    call = Call.of(ctx)
    call.show(call.ask_all("cloud.breaker.list", "breakers"), _format_breakers)


@breaker.command("reset", cls=changes("cloud.breaker.reset"))
def reset_breakers(ctx: typer.Context, target: OneTarget = None) -> None:
    """Ask a target again at once, or all."""
    call = Call.of(ctx)
    document = call.change("cloud.breaker.reset", **without_none(target=target))
    call.show(document, lambda shown: f"{count(shown['closed'], 'breaker')} closed")


@budget.command("show", cls=Verb)
def show_budget(ctx: typer.Context) -> None:
    """What today may cost, and what it has cost."""
    call = Call.of(ctx)
    call.show(call.ask("cloud.budget.show"), _format_budget)


@budget.command("set", cls=changes("cloud.budget.set"))
def set_budget(ctx: typer.Context, usd: Usd = None, requests: PerDay = None) -> None:
    """Bound what a day may cost; under a bound of money, targets without a price are not asked."""
    call = Call.of(ctx)
    given = {"usd_per_day": usd, "requests_per_day": requests}
    show_change(call, call.change("cloud.budget.set", **{name: value for name, value in given.items() if value}))


@price.command("list", cls=Verb)
def list_prices(ctx: typer.Context) -> None:
    """The prices, in US dollars per million tokens."""
    call = Call.of(ctx)
    call.show(call.ask_all("cloud.price.list", "prices"), _format_prices)


@price.command("set", cls=changes("cloud.price.set"))
def set_price(ctx: typer.Context, target: Target, input_usd: Input, output_usd: Output) -> None:
    """Say what a target costs."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.price.set", target=target, input=input_usd, output=output_usd))


@price.command("remove", cls=changes("cloud.price.remove"))
def remove_price(ctx: typer.Context, target: Target) -> None:
    """Forget what a target costs."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.price.remove", target=target))


def _format(document: Document) -> str:
    state = "on" if document["enabled"] else "off: no request leaves this machine (mlxctl cloud enable)"
    parts = [f"cloud: {state}", provider.format_list(document), rule.format_list(document)]
    if document.get("budget") is not None:
        parts.append(_format_budget(document["budget"]))
    if document.get("breakers"):
        parts.append(_format_breakers(document))
    return "\n\n".join(parts)


def _format_breakers(document: Document) -> str:
    if not document["breakers"]:
        return "no target was tried in the last minute, none is left alone"
    return format_table(
        ["TARGET", "STATE", "FAILED", "OF", "ASKED AGAIN IN"],
        [
            (
                item["target"],
                item["state"],
                item["failures"],
                item["attempts"],
                None if item["retry_in_ms"] is None else show_duration(item["retry_in_ms"] / 1000),
            )
            for item in document["breakers"]
        ],
    )


def _format_budget(document: Document) -> str:
    usd, requests = document["usd_per_day_micro"], document["requests_per_day"]
    spent = f"{_usd(document['spent_micro'])} spent, {_usd(document['reserved_micro'])} reserved"
    money = f"{spent}, no bound" if usd is None else f"{spent} of {_usd(usd)} USD"
    sent = f"{document['requests']} sent, no bound" if requests is None else f"{document['requests']} of {requests}"
    unpriced = ", ".join(document["unpriced"])
    refused = f"{unpriced} (mlxctl cloud price set TARGET --input USD --output USD)" if unpriced else None
    return format_pairs(
        [("day", f"{document['date']} (UTC)"), ("money", money), ("requests", sent), ("not asked, no price", refused)]
    )


def _usd(micro: int) -> str:
    return f"{micro / _MICRO:.4f}".rstrip("0").rstrip(".")


def _format_prices(document: Document) -> str:
    if not document["prices"]:
        return "no price; mlxctl cloud price set PROVIDER/MODEL --input USD --output USD"
    return format_table(
        ["TARGET", "INPUT", "OUTPUT"],
        [(item["target"], f"{item['input']:g}", f"{item['output']:g}") for item in document["prices"]],
    )
