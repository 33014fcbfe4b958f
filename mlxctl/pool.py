"""`mlxctl pool`: memory, limits and residents, and the `set-*` verbs that the settings table asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from mlxctl.call import Call
from mlxctl.change import format_evicted, format_simulation, show_change
from mlxctl.noun import add_verbs
from mlxctl.setting import parse_pool_changes
from mlxctl.verb import Verb, changes, make_app, usage_error
from mlxctl.view import format_pool
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Row
from mlxd.protocol.table import rows

app = make_app("Memory and the models that are loaded.")

Value = Annotated[str, typer.Argument(metavar="VALUE", help="The new value.")]
Pairs = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE...", help="Settings of the pool; all or none are changed.")
]


Load = Annotated[str | None, typer.Option("--load", metavar="MODEL", help="Load this model.")]
Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Set pool.memory to this.")]
MaxModels = Annotated[str | None, typer.Option("--max-models", metavar="N", help="Set pool.max_models to this.")]
Victim = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="The model that goes.")]
Idle = Annotated[bool, typer.Option("--idle", help="All models that are idle and neither pinned nor preloaded.")]


@app.command("simulate", cls=Verb)
def simulate(ctx: typer.Context, load: Load = None, memory: Memory = None, max_models: MaxModels = None) -> None:
    """What a load, or another limit, would do; nothing is changed."""
    if (load is None) == (memory is None and max_models is None):
        raise usage_error(
            "name a model to load, or a memory limit or a number of models",
            "mlxctl pool simulate --load MODEL\nmlxctl pool simulate --memory SIZE --max-models N",
        )
    call = Call.of(ctx)
    call.show(call.ask("pool.simulate", load=load, memory=memory, max_models=max_models), format_simulation)


@app.command("evict", cls=changes("pool.evict"))
def evict(ctx: typer.Context, model: Victim = None, idle: Idle = False) -> None:
    """Let a model go, or all idle ones, as if another needed the memory: what waits for it is loaded again."""
    if (model is None) != idle:
        raise usage_error("name a model, or say --idle", "mlxctl pool evict MODEL\nmlxctl pool evict --idle")
    call = Call.of(ctx)
    call.show(call.change("pool.evict", model=model), format_evicted)


@app.command("set", cls=changes("settings.set"))
def set_pairs(ctx: typer.Context, pairs: Pairs) -> None:
    """Change several settings of the pool at once: all or none."""
    call = Call.of(ctx)
    show_change(call, call.change("settings.set", changes=parse_pool_changes(pairs)))


def _add_verb(key: str, name: str, row: Row) -> None:
    help_text = f"{row.help}\n\nVALUE is {row.kind.accepted}. Default: {row.default}."

    @app.command(name, cls=changes("settings.set"), help=help_text)
    def set_one(ctx: typer.Context, value: Value) -> None:
        call = Call.of(ctx)
        show_change(call, call.change("settings.set", changes={key: value}))


def _add_verbs(table: Iterable[tuple[tuple[str, ...], Row]]) -> None:
    for path, row in table:
        if row.verb:
            _add_verb(format_path(path), f"set-{path[-1].replace('_', '-')}", row)


_add_verbs(rows())
add_verbs(app, "pool", {"pool.show": format_pool})
