"""`mlxctl cloud provider`: upstream servers."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxctl.call import Call, Document, without_none
from mlxctl.change import show_change
from mlxctl.output import format_pairs, format_table, show_duration
from mlxctl.verb import Verb, changes, make_app
from mlxd.protocol.errors import EXIT_OTHER

app = make_app("Upstream servers.")

_MOST_SHOWN = 20
_TIMEOUTS = ("connect", "first_token", "idle", "total")

NewId = Annotated[str, typer.Argument(metavar="ID", help="Name of the provider.")]
BaseURL = Annotated[str, typer.Option("--base-url", metavar="URL", help="Address up to and including /v1.")]
OtherURL = Annotated[str | None, typer.Option("--base-url", metavar="URL", help="Address up to and including /v1.")]
Kind = Annotated[str | None, typer.Option("--kind", metavar="openai|anthropic", help="Wire protocol.")]
Proxy = Annotated[
    str | None, typer.Option("--proxy", metavar="URL|none", help="HTTP proxy on the way to it: http://host:3128.")
]
Auth = Annotated[
    str | None,
    typer.Option(
        "--auth",
        metavar="WHERE",
        help="Where the key is: env:NAME, file:PATH, keychain:SERVICE/NAME or none.",
    ),
]
AuthEnv = Annotated[
    str | None,
    typer.Option("--auth-env", metavar="NAME", help="Environment variable of the daemon that holds the key."),
]
Timeouts = Annotated[
    list[str] | None,
    typer.Option(
        "--timeouts",
        metavar="NAME=DURATION",
        help="Of connect, first_token, idle and total, such as connect=5s,idle=60s.",
    ),
]
Cascade = Annotated[
    bool, typer.Option("--cascade", help="Take it out of the rules as well; one that is left empty goes.")
]
TestModel = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Ask this model for one token instead of for the list of models."),
]


@app.command("add", cls=changes("cloud.provider.add"))
def add(
    ctx: typer.Context,
    identifier: NewId,
    base_url: BaseURL,
    kind: Kind = None,
    proxy: Proxy = None,
    auth: Auth = None,
    auth_env: AuthEnv = None,
    timeouts: Timeouts = None,
) -> None:
    """Add an upstream server, or change one."""
    call = Call.of(ctx)
    given = without_none(kind=kind, proxy=proxy, auth=auth, auth_env=auth_env, **_split(timeouts))
    show_change(call, call.change("cloud.provider.add", id=identifier, base_url=base_url, **given))


@app.command("set", cls=changes("cloud.provider.set"))
def set_one(
    ctx: typer.Context,
    identifier: NewId,
    base_url: OtherURL = None,
    kind: Kind = None,
    proxy: Proxy = None,
    auth: Auth = None,
    auth_env: AuthEnv = None,
    timeouts: Timeouts = None,
) -> None:
    """Change what is given of an upstream server; running requests end as they began."""
    call = Call.of(ctx)
    timing = _split(timeouts)
    given = without_none(base_url=base_url, kind=kind, proxy=proxy, auth=auth, auth_env=auth_env, **timing)
    show_change(call, call.change("cloud.provider.set", id=identifier, **given))


@app.command("list", cls=Verb)
def list_all(ctx: typer.Context) -> None:
    """The upstream servers."""
    call = Call.of(ctx)
    call.show(call.ask_all("cloud.provider.list", "providers"), format_list)


@app.command("show", cls=Verb)
def show(ctx: typer.Context, identifier: NewId) -> None:
    """One upstream server, its timeouts, and the rules that use it."""
    call = Call.of(ctx)
    call.show(call.ask("cloud.provider.show", id=identifier), _format_one)


@app.command("remove", cls=changes("cloud.provider.remove"))
def remove(ctx: typer.Context, identifier: NewId, cascade: Cascade = False) -> None:
    """Remove an upstream server that no rule uses."""
    call = Call.of(ctx)
    show_change(call, call.change("cloud.provider.remove", id=identifier, **without_none(cascade=cascade or None)))


@app.command("test", cls=Verb)
def call_once(ctx: typer.Context, identifier: NewId, model: TestModel = None) -> None:
    """Call an upstream server once, whether the cloud is on or off, and say what came back."""
    call = Call.of(ctx)
    document = call.ask("cloud.provider.test", id=identifier, **without_none(model=model))
    call.show(document, _format_test)
    if not document["ok"]:
        raise typer.Exit(EXIT_OTHER)


def _split(timeouts: list[str] | None) -> Document:
    """Return name → duration of what was given in several options, or in one with commas."""
    pairs = [part.strip().partition("=") for item in timeouts or [] for part in item.split(",")]
    for name, sign, value in pairs:
        if name not in _TIMEOUTS or not sign or not value:
            raise typer.BadParameter(f"{name!r} is not NAME=DURATION with a NAME of {', '.join(_TIMEOUTS)}")
    return {name: value for name, _, value in pairs}


def format_list(document: Document) -> str:
    """Return the providers as a table."""
    if not document["providers"]:
        return "no provider; mlxctl cloud provider add ID --base-url URL"
    return format_table(
        ["PROVIDER", "KIND", "BASE URL", "KEY FROM", "STATE"],
        [
            (item["id"], item["kind"], item["base_url"], item.get("auth") or item.get("auth_env"), item.get("state"))
            for item in document["providers"]
        ],
    )


def _format_one(document: Document) -> str:
    timeouts = document["timeouts_ms"].items()
    return format_pairs(
        [
            ("provider", document["id"]),
            ("kind", document["kind"]),
            ("base URL", document["base_url"]),
            ("proxy", document.get("proxy")),
            ("key from", document["auth"] or "nowhere: it needs none"),
            ("state", document["state"]),
            ("problem", document["key_problem"]),
            ("timeouts", ", ".join(f"{name} {show_duration(value / 1000)}" for name, value in timeouts)),
            ("rules", ", ".join(document["rules"]) or "none"),
        ]
    )


def _format_test(document: Document) -> str:
    models = document["models"]
    more = f" and {len(models) - _MOST_SHOWN} more" if len(models) > _MOST_SHOWN else ""
    return format_pairs(
        [
            ("provider", document["id"]),
            ("called", document["url"]),
            ("result", "ok" if document["ok"] else document["code"]),
            ("status", document["status"]),
            ("took", f"{document['ms']}ms"),
            ("reason", document["reason"]),
            ("models", f"{len(models)}: {', '.join(models[:_MOST_SHOWN])}{more}" if models else None),
        ]
    )
