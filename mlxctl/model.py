"""`mlxctl model`: the models on disk, which of them are loaded, and which stay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlxctl import download
from mlxctl.call import Call, Document, confirm
from mlxctl.change import effect_lines, show_change
from mlxctl.output import format_table, show_path, show_size
from mlxctl.planning import format_estimate
from mlxctl.setting import parse_model_changes
from mlxctl.verb import Verb, changes, make_app
from mlxctl.view import format_model, format_models
from mlxd.protocol.table import rows
from mlxd.protocol.units import count

app = make_app("Models on disk: fetch, import, load, unload, pin, set.")
alias = make_app("Other names under which clients may ask for a model.")
app.add_typer(alias, name="alias")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model id, as `mlxctl model list` shows it, or an alias.")]
Alias = Annotated[str, typer.Argument(metavar="ALIAS", help="The other name.")]
Pairs = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the model; all or none are changed."),
]
Reload = Annotated[
    str | None,
    typer.Option(
        "--reload",
        metavar="idle|now|next-load",
        help="When a loaded model takes the change up, for this once; its setting `reload` when left out.",
    ),
]
Source = Annotated[str, typer.Argument(metavar="starter|ORG/NAME", help="The starter model, or one of the hub.")]
Dtype = Annotated[
    Literal["float32"] | None,
    typer.Option("--dtype", metavar="float32", help="Also a dequantized copy (starter only)."),
]
Revision = Annotated[str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit (hub only).")]
File = Annotated[str, typer.Argument(metavar="FILE.gguf", help="The file, which is left as it is.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Model id; that of the file if left out.")]
Bits = Annotated[
    Literal["4", "8", "16"] | None,
    typer.Option("--bits", help="Of the weights, 16 for floats; as close to the file as MLX can if left out."),
]
Context = Annotated[
    int | None, typer.Option("--context", metavar="N", help="Tokens of each sequence; 4096 when left out.")
]
Parallel = Annotated[int | None, typer.Option("--parallel", metavar="N", help="Sequences at a time.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def _settings_help() -> str:
    names = [path[-1] for path, _ in rows() if path[:2] == ("models", "*")]
    return f"KEY is one of {', '.join(names)}. `inherit` takes a value back; `mlxctl config list` explains them."


@app.command("list", cls=Verb)
def list_models(ctx: typer.Context) -> None:
    """All models on disk with their state."""
    call = Call.of(ctx)
    call.show(call.ask_all("model.list", "models"), format_models)


@app.command("show", cls=Verb)
def show(ctx: typer.Context, model: Model) -> None:
    """One model: where it lies, what it needs, its state."""
    call = Call.of(ctx)
    call.show(call.ask("model.show", model=model), format_model)


@app.command("estimate", cls=Verb)
def estimate(ctx: typer.Context, model: Model, context: Context = None, parallel: Parallel = None) -> None:
    """What a model takes, where the numbers come from, whether it fits, and what would give way for it."""
    call = Call.of(ctx)
    call.show(call.ask("model.estimate", model=model, context=context, parallel=parallel), format_estimate)


@app.command("pull", cls=Verb)
def pull(ctx: typer.Context, source: Source, dtype: Dtype = None, revision: Revision = None) -> None:
    """Fetch a model; needs no daemon, and tells a running one."""
    call = Call.of(ctx)
    options = [
        *(["--dtype", dtype] if dtype is not None else []),
        *(["--revision", revision] if revision is not None else []),
    ]
    call.show(download.run(call, ["pull", source, *options]), format_pulled)


@app.command("import", cls=Verb)
def import_file(ctx: typer.Context, file: File, name: Name = None, bits: Bits = None) -> None:
    """Make a model of a GGUF file; needs no daemon, and tells a running one."""
    call = Call.of(ctx)
    path = Path(file).expanduser().absolute()  # the program that does it has a working folder of its own
    options = [
        *(["--name", name] if name is not None else []),
        *(["--bits", bits] if bits is not None else []),
    ]
    call.show(download.run(call, ["import", *options, "--", str(path)]), format_pulled)


@app.command("load", cls=changes("model.load"))
def load(ctx: typer.Context, model: Model) -> None:
    """Load a model now."""
    call = Call.of(ctx)
    call.show(call.change("model.load", model=model), lambda shown: _format_effects(shown, f"{model} is loaded"))


@app.command("unload", cls=changes("model.unload"))
def unload(ctx: typer.Context, model: Model) -> None:
    """Unload a model once its requests have ended."""
    call = Call.of(ctx)
    call.show(call.change("model.unload", model=model), lambda shown: _format_effects(shown, f"{model} is not loaded"))


@app.command("pin", cls=changes("model.pin"))
def pin(ctx: typer.Context, model: Model) -> None:
    """Never evict the model and never unload it when idle."""
    call = Call.of(ctx)
    show_change(call, call.change("model.pin", model=model))


@app.command("unpin", cls=changes("model.unpin"))
def unpin(ctx: typer.Context, model: Model) -> None:
    """Make the model ordinary again."""
    call = Call.of(ctx)
    show_change(call, call.change("model.unpin", model=model))


@app.command("set", cls=changes("model.set"), epilog=_settings_help())
def set_pairs(ctx: typer.Context, model: Model, pairs: Pairs = None, reload: Reload = None) -> None:
    """Change settings of a model: all or none."""
    call = Call.of(ctx)
    words = {} if not pairs else parse_model_changes(pairs)
    params: Document = {"model": model} | ({"changes": words} if words else {})
    if reload is not None:
        params["reload"] = reload
    show_change(call, call.change("model.set", **params))


@app.command("rescan", cls=changes("catalog.rescan"))
def rescan(ctx: typer.Context) -> None:
    """Look for models on disk now: what was copied there, changed or deleted."""
    call = Call.of(ctx)
    call.show(call.change("catalog.rescan"), _format_rescan)


@app.command("reset", cls=changes("model.reset"))
def reset(ctx: typer.Context, model: Model) -> None:
    """Forget that loads of a model failed, or killed the daemon: it may be loaded again at once."""
    call = Call.of(ctx)
    call.show(call.change("model.reset", model=model), _format_reset)


@alias.command("list", cls=Verb)
def list_aliases(ctx: typer.Context) -> None:
    """All aliases and their models."""
    call = Call.of(ctx)
    call.show(call.ask("model.alias.list"), _format_aliases)


@alias.command("add", cls=changes("model.alias.add"))
def add_alias(ctx: typer.Context, model: Model, alias: Alias) -> None:
    """Give a model another name."""
    call = Call.of(ctx)
    show_change(call, call.change("model.alias.add", model=model, alias=alias))


@alias.command("remove", cls=changes("model.alias.remove"))
def remove_alias(ctx: typer.Context, alias: Alias) -> None:
    """Take another name away."""
    call = Call.of(ctx)
    show_change(call, call.change("model.alias.remove", alias=alias))


@app.command("remove", cls=changes("model.remove"))
def remove(ctx: typer.Context, model: Model, yes: Yes = False) -> None:
    """Delete a model's files."""
    call = Call.of(ctx)
    entry = call.ask("model.show", model=model)
    confirm(f"Delete {entry.get('path', model)}?", yes=yes)
    call.show(call.change("model.remove", model=model), _format_removed)


def format_pulled(document: Document) -> str:
    """Return where a pulled model is."""
    return (
        f"{document['id']} is {'already there' if document.get('already') else 'ready'}: {show_path(document['path'])}"
    )


def _format_reset(document: Document) -> str:
    if document["reset"]:
        return f"reset {document['model']}: it is loaded again when it is wanted"
    return f"{document['model']} has not failed"


def _format_removed(document: Document) -> str:
    return f"removed {document['model']}: {show_size(document['freed_bytes'])} freed"


def _format_rescan(document: Document) -> str:
    lines = [f"{word} {model}" for word in ("added", "removed") for model in document[word]]
    return "\n".join([*lines, f"{count(document['models'], 'model')} on this disk"])


def _format_aliases(document: Document) -> str:
    if not document["aliases"]:
        return "no model has another name; mlxctl model alias add MODEL ALIAS"
    return format_table(
        ["ALIAS", "MODEL", "NOTE"],
        [(alias["alias"], alias["model"], alias.get("problem")) for alias in document["aliases"]],
    )


def _format_effects(document: Document, when_nothing: str) -> str:
    lines = list(effect_lines(document)) or [when_nothing]
    return "\n".join([*lines, *(["dry run: nothing was changed"] if document.get("dry_run") else [])])
