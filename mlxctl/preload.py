"""`mlxctl preload`: the models that are kept loaded, in order."""

from __future__ import annotations

from typing import Annotated

import typer

from mlxctl.call import Call, Document
from mlxctl.change import show_change
from mlxctl.output import format_table
from mlxctl.verb import Verb, changes, make_app

app = make_app("Models that are kept loaded.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model id.")]
Models = Annotated[
    list[str] | None, typer.Argument(metavar="[MODEL]...", help="Model ids in order; none empties the list.")
]
At = Annotated[
    int | None, typer.Option("--at", min=0, metavar="N", help="Place in the list, from 0; the end when left out.")
]
Unload = Annotated[bool, typer.Option("--unload", help="Unload it as well.")]


@app.command("list", cls=Verb)
def list_preloads(ctx: typer.Context) -> None:
    """The list, with the state of each model."""
    call = Call.of(ctx)
    call.show(call.ask("preload.list"), _format)


@app.command("add", cls=changes("preload.add"))
def add(ctx: typer.Context, model: Model, at: At = None) -> None:
    """Keep a model loaded."""
    call = Call.of(ctx)
    place = {} if at is None else {"at": at}
    show_change(call, call.change("preload.add", model=model, **place))


@app.command("remove", cls=changes("preload.remove"))
def remove(ctx: typer.Context, model: Model, unload: Unload = False) -> None:
    """Take a model off the list; it stays loaded until it is idle or evicted."""
    call = Call.of(ctx)
    show_change(call, call.change("preload.remove", model=model, unload=unload))


@app.command("set", cls=changes("preload.set"))
def set_list(ctx: typer.Context, models: Models = None) -> None:
    """Replace the list."""
    call = Call.of(ctx)
    show_change(call, call.change("preload.set", models=list(models or [])))


def _format(document: Document) -> str:
    models = document["preload"]
    if not models:
        return "no model is preloaded"
    return format_table(
        ["#", "MODEL", "STATE", "REASON"],
        [(place, model["id"], model["state"], model.get("reason")) for place, model in enumerate(models)],
    )
