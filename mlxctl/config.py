"""`mlxctl config`: every setting by its key, and the file they stand in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mlxctl import process
from mlxctl.call import Call, Document
from mlxctl.change import show_change, show_value
from mlxctl.output import format_table
from mlxctl.setting import normalize_key, parse_one_or_more
from mlxctl.verb import Verb, changes, make_app
from mlxd.protocol.errors import EXIT_NOT_FOUND, EXIT_OTHER, ControlError, FileInvalid
from mlxd.protocol.units import show_bytes

app = make_app("Settings by key.")

Key = Annotated[str, typer.Argument(metavar="KEY", help='Dotted key: pool.memory, models."ORG/NAME".pin')]
Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Dotted keys.")]
Words = Annotated[list[str], typer.Argument(metavar="KEY VALUE | KEY=VALUE...", help="All or none are changed.")]
File = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Another file than the one in use.")]


@app.command("get", cls=Verb)
def get(ctx: typer.Context, key: Key) -> None:
    """One setting, as it stands in the file."""
    call = Call.of(ctx)
    call.show(call.ask("settings.get", key=normalize_key(key)), _format_value)


@app.command("set", cls=changes("settings.set"))
def set_pairs(ctx: typer.Context, words: Words) -> None:
    """Change settings, at once and for good."""
    call = Call.of(ctx)
    show_change(call, call.change("settings.set", changes=parse_one_or_more(words)))


@app.command("unset", cls=changes("settings.set"))
def unset(ctx: typer.Context, keys: Keys) -> None:
    """Take settings out of the file, which brings their defaults back."""
    call = Call.of(ctx)
    show_change(call, call.change("settings.set", changes=dict.fromkeys(map(normalize_key, keys))))


@app.command("list", cls=Verb)
def list_settings(ctx: typer.Context) -> None:
    """All settings, and whether they stand in the file."""
    call = Call.of(ctx)
    call.show(call.ask_all("settings.list", "settings"), _format_list)


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


@app.command("validate", cls=Verb)
def validate(ctx: typer.Context, file: File = None) -> None:
    """Check a settings file without using it; exits 10 and names the line if it is not valid."""
    call = Call.of(ctx)
    document = call.ask("settings.validate") if file is None else _validate(call, file)
    for warning in document.get("warnings", []):
        call.note(f"warning: {warning}")
    call.show(document, lambda shown: f"{file if file is not None else shown['path']} is valid")


def _validate(call: Call, file: Path) -> Document:
    """Check *file*, which the daemon knows only the text of: in its error stands the name of the file in use."""
    text = _read(file)
    try:
        return call.ask("settings.validate", text=text)
    except ControlError as error:
        if error.code == FileInvalid.code:
            error.message = str(file) + error.message.removeprefix(str(error.data.get("file")))
            error.hint = f"mend it, then mlxctl config validate {shlex.quote(str(file))}"
            error.data["file"] = str(file)
        raise


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileInvalid(f"{file} is not UTF-8: {error}") from None
    except OSError as error:
        raise ControlError(
            f"{file} cannot be read: {error.strerror}",
            exit_code=EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_OTHER,
            code="file.unreadable",
        ) from None


def _format_value(document: Document) -> str:
    written = show_value(document["written"] if document.get("written") is not None else document.get("default"))
    value = document.get("value")
    if not isinstance(value, int) or isinstance(value, bool) or written.isdecimal():
        return written
    return f"{written} = {show_bytes(value)}"  # a whole number that is written otherwise is a size


def _format_list(document: Document) -> str:
    return format_table(
        ["SETTING", "VALUE", "ORIGIN"],
        [(setting["key"], _format_value(setting), setting["origin"]) for setting in document["settings"]],
    )
