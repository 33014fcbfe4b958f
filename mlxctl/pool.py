"""`mlxctl pool`: memory, limits and residents, and the `set-*` verbs that the settings table asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from mlxctl.call import Call
from mlxctl.change import show_change
from mlxctl.setting import parse_changes
from mlxctl.verb import Verb, changes, make_app
from mlxctl.view import format_pool
from mlxd.protocol.key import format_path
from mlxd.protocol.row import Row
from mlxd.protocol.table import rows

app = make_app("Memory and the models that are loaded.")

Value = Annotated[str, typer.Argument(metavar="VALUE", help="The new value.")]
Pairs = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE...", help="Settings of the pool; all or none are changed.")
]


@app.command("show", cls=Verb)
def show(ctx: typer.Context) -> None:
    """Memory, limits, loaded models and the queue."""
    call = Call.of(ctx)
    call.show(call.ask("pool.show"), format_pool)


@app.command("set", cls=changes("settings.set"))
def set_pairs(ctx: typer.Context, pairs: Pairs) -> None:
    """Change several settings of the pool at once: all or none."""
    call = Call.of(ctx)
    show_change(call, call.change("settings.set", changes=parse_changes(pairs, "pool")))


def _add_verb(key: str, name: str, row: Row) -> None:
    help_text = f"{row.help}\n\nVALUE is {row.kind.describe()}. Default: {row.default}."

    @app.command(name, cls=changes("settings.set"), help=help_text)
    def set_one(ctx: typer.Context, value: Value) -> None:
        call = Call.of(ctx)
        show_change(call, call.change("settings.set", changes={key: value}))


def _add_verbs(table: Iterable[tuple[tuple[str, ...], Row]]) -> None:
    for path, row in table:
        if row.verb:
            _add_verb(format_path(path), f"set-{path[-1].replace('_', '-')}", row)


_add_verbs(rows())
