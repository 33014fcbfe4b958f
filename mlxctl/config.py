"""`mlxctl config`: every setting by its key, and the file they stand in."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mlxctl import config_file, process
from mlxctl.call import Call, Document
from mlxctl.change import show_change, show_value
from mlxctl.output import format_table, show_path
from mlxctl.setting import normalize_key, parse_one_or_more
from mlxctl.verb import Verb, changes, make_app
from mlxd.protocol.table import make_schema
from mlxd.protocol.units import show_bytes

app = make_app("Settings by key.")

Key = Annotated[str, typer.Argument(metavar="KEY", help='Dotted key: pool.memory, models."ORG/NAME".pin')]
Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Dotted keys.")]
Words = Annotated[list[str], typer.Argument(metavar="KEY VALUE | KEY=VALUE...", help="All or none are changed.")]
ShowOrigin = Annotated[bool, typer.Option("--show-origin", help="Name the line of the file that states it.")]


@app.command("get", cls=Verb)
def get(ctx: typer.Context, key: Key) -> None:
    """One setting, as it is written."""
    call = Call.of(ctx)
    document = call.ask("settings.get", key=normalize_key(key))
    if document.get("origin") == "overlay":
        call.note(f"note: runtime-only; saved is {show_value(document.get('saved'))}")
    call.show(document, _format_value)


@app.command("set", cls=changes("settings.set"))
def set_pairs(ctx: typer.Context, words: Words) -> None:
    """Change settings, at once and for good."""
    call = Call.of(ctx)
    show_change(call, call.change("settings.set", changes=parse_one_or_more(words)))


@app.command("unset", cls=changes("settings.set"))
def unset(ctx: typer.Context, keys: Keys) -> None:
    """Take settings out of the file: defaults hold.

    With --runtime-only, take the runtime-only value away: what the file says holds again.
    """
    call = Call.of(ctx)
    show_change(call, call.change("settings.set", changes=dict.fromkeys(map(normalize_key, keys))))


@app.command("list", cls=Verb)
def list_settings(ctx: typer.Context, *, show_origin: ShowOrigin = False) -> None:
    """All settings, and whether they stand in the file."""
    call = Call.of(ctx)
    call.show(call.ask_all("settings.list", "settings"), lambda shown: _format_list(shown, show_origin=show_origin))


@app.command("path", cls=Verb)
def path(ctx: typer.Context) -> None:
    """Where the settings file is."""
    call = Call.of(ctx)
    daemon = process.find_daemon(call.socket, call.options.timeout_s)
    document = {"path": str(call.home.config)}
    if daemon is not None:
        with daemon:  # it may have been started with another file
            document = daemon.request("settings.path").result
    call.show(document, lambda shown: str(shown["path"]))


@app.command("reload", cls=changes("settings.reload"))
def reload(ctx: typer.Context) -> None:
    """Take the settings file up now.

    The daemon does so by itself, seconds after it was edited.
    """
    call = Call.of(ctx)
    show_change(call, call.change("settings.reload"))


@app.command("schema", cls=Verb)
def schema(ctx: typer.Context) -> None:
    """JSON Schema of the file; needs no daemon."""
    call = Call.of(ctx)
    document = make_schema()
    call.show({"json_schema": document} if call.options.json else document, lambda shown: json.dumps(shown, indent=2))


for _name, _operation, _verb in config_file.VERBS:
    app.command(_name, cls=Verb if _operation is None else changes(_operation))(_verb)


def _format_value(document: Document) -> str:
    written = show_value(document["written"] if document.get("written") is not None else document.get("default"))
    value = document.get("value")
    if not isinstance(value, int) or isinstance(value, bool) or written.isdecimal():
        return written
    return f"{written} = {show_bytes(value)}"  # a whole number that is written otherwise is a size


def _format_list(document: Document, *, show_origin: bool) -> str:
    file = show_path(str(document.get("path", "config.toml")))

    def origin(setting: Document) -> str:
        line = setting.get("line")
        return f"{file}:{line}" if show_origin and line is not None else str(setting["origin"])

    return format_table([("SETTING", "key"), ("VALUE", _format_value), ("ORIGIN", origin)], document["settings"])
