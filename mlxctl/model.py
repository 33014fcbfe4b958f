"""`mlxctl model`: the models on disk, which of them are loaded, and which stay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mlxctl import download
from mlxctl.call import Call, Document, confirm
from mlxctl.change import effect_lines, format_estimate
from mlxctl.noun import add_verbs, make_noun
from mlxctl.output import format_table, show_path, show_size
from mlxctl.verb import Verb, changes, make_app
from mlxctl.view import format_model, format_models
from mlxd.protocol.units import count

app = make_app("Models on disk: fetch, import, load, unload, pin, set.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model id, as `mlxctl model list` shows it, or an alias.")]
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
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


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
    return format_table([("ALIAS", "alias"), ("MODEL", "model"), ("NOTE", "problem")], document["aliases"])


def _format_loaded(document: Document) -> str:
    return _format_effects(document, f"{document['model']} is loaded")


def _format_unloaded(document: Document) -> str:
    return _format_effects(document, f"{document['model']} is not loaded")


def _format_effects(document: Document, when_nothing: str) -> str:
    lines = list(effect_lines(document)) or [when_nothing]
    return "\n".join([*lines, *(["dry run: nothing was changed"] if document.get("dry_run") else [])])


_VIEWS = {
    "model.list": format_models,
    "model.show": format_model,
    "model.estimate": format_estimate,
    "model.load": _format_loaded,
    "model.unload": _format_unloaded,
    "catalog.rescan": _format_rescan,
    "model.reset": _format_reset,
    "model.alias.list": _format_aliases,
}
add_verbs(app, "model", _VIEWS)
app.add_typer(make_noun("model.alias", "Other names under which clients may ask for a model.", _VIEWS), name="alias")
