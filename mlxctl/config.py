"""`mlxctl config`: every setting by its key, and the file they stand in: check, edit, replace, compare, go back."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mlxctl import process
from mlxctl.call import Call, Document
from mlxctl.change import show_change, show_difference, show_value
from mlxctl.editor import Draft
from mlxctl.noun import add_verbs
from mlxctl.output import format_error, format_table, print_note, show_path, show_time
from mlxctl.setting import normalize_key, parse_changes
from mlxctl.verb import Verb, changes, make_app, usage_error
from mlxd.protocol.errors import EXIT_CAPACITY, EXIT_INVALID, EXIT_NOT_FOUND, EXIT_OTHER, ControlError, FileInvalid
from mlxd.protocol.settings import MAX_FILE_BYTES
from mlxd.protocol.table import make_schema
from mlxd.protocol.units import show_bytes

app = make_app("Settings by key.")

_STDIN = Path("-")

Key = Annotated[str, typer.Argument(metavar="KEY", help='Dotted key: pool.memory, models."ORG/NAME".pin')]
Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Dotted keys.")]
Words = Annotated[list[str], typer.Argument(metavar="KEY VALUE | KEY=VALUE...", help="All or none are changed.")]
OtherFile = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Another file than the one in use.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A whole settings file; - reads stdin.")]
Generations = Annotated[
    list[int] | None, typer.Argument(metavar="[GEN [GEN]]", help="One, against the file now; or two.")
]
Runtime = Annotated[bool, typer.Option("--runtime", help="Only what is runtime-only.")]
OnDisk = Annotated[bool, typer.Option("--file", help="Only what the file on the disk says and is not in force.")]
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
    show_change(call, call.change("settings.set", changes=parse_changes(words)))


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


@app.command("schema", cls=Verb)
def schema(ctx: typer.Context) -> None:
    """JSON Schema of the file; needs no daemon."""
    call = Call.of(ctx)
    document = make_schema()
    call.show({"json_schema": document} if call.options.json else document, lambda shown: json.dumps(shown, indent=2))


@app.command("validate", cls=Verb)
def validate(ctx: typer.Context, file: OtherFile = None) -> None:
    """Check a settings file.

    Nothing is changed. Exits 10 and names the line if it is not valid.
    """
    call = Call.of(ctx)
    if file is None:
        document = call.ask("settings.validate")
    else:
        document = call.ask("settings.validate", text=_read(file), name=str(file))
    for warning in document.get("warnings", []):
        call.note(f"warning: {warning}")
    call.show(document, lambda shown: f"{file if file is not None else shown['path']} is valid")


@app.command("edit", cls=changes("settings.apply"))
def edit(ctx: typer.Context) -> None:
    """Edit the settings file in $VISUAL or $EDITOR.

    It is a copy that is edited: it takes effect when it is valid, and else can be edited again.
    """
    call = Call.of(ctx)
    found = call.ask("settings.read")
    if call.options.if_generation is None:
        call.options = dataclasses.replace(call.options, if_generation=found["gen"])
    draft = Draft(found["text"])
    while True:
        text = draft.edit()
        if text == found["text"]:
            draft.remove()
            call.show({"gen": found["gen"], "changed": [], "rewritten": False}, lambda _: "unchanged")
            return
        try:
            document = call.change("settings.apply", text=text, name=draft.path.name, base=found["sha256"])
            break
        except ControlError as error:
            if error.exit_code not in {EXIT_INVALID, EXIT_CAPACITY} or not sys.stdin.isatty():
                raise draft.kept(error) from None
            error.hint = None
            print_note(format_error(error))
            if not typer.confirm("Edit again?", default=True, err=True):
                error.message = "the edit was given up"
                raise draft.kept(error) from None
    draft.remove()
    show_change(call, document)


@app.command("apply", cls=changes("settings.apply"))
def apply(ctx: typer.Context, file: File) -> None:
    """Take a whole file, all of it or nothing."""
    call = Call.of(ctx)
    show_change(call, call.change("settings.apply", text=_read(file), name=str(file)))


@app.command("diff", cls=Verb)
def diff(
    ctx: typer.Context, generations: Generations = None, *, runtime: Runtime = False, file: OnDisk = False
) -> None:
    """What is not as the file says; or what two generations differ in.

    Without a generation: what is runtime-only, and what the file on the disk says and is not in force yet.
    """
    call = Call.of(ctx)
    numbers = generations or []
    if len(numbers) > 2 or (numbers and (runtime or file)):
        raise usage_error("config diff takes at most two generations, or --runtime or --file", f"{call.command} --help")
    document = call.ask("settings.diff", **dict(zip(("old", "new"), numbers, strict=False)))
    if not numbers:
        problem = document.get("problem")
        if problem is not None and not runtime:
            raise ControlError.from_wire(dict(problem))
        if runtime != file:
            document["pending" if runtime else "overlay"] = []
    call.show(document, lambda shown: "\n".join(_diff_lines(shown)) or "no difference")


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


def _read(file: Path) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if file == _STDIN else file.read_bytes()
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FileInvalid(f"{file} is not UTF-8: {error}") from None
    except OSError as error:
        raise ControlError(
            f"{file} cannot be read: {error.strerror}",
            exit_code=EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_OTHER,
            code="file.unreadable",
        ) from None
    if len(data) > MAX_FILE_BYTES:
        raise FileInvalid(f"{file} has more than {MAX_FILE_BYTES} bytes, the most that a settings file may have")
    return text


def _diff_lines(document: Document) -> Iterator[str]:
    for name, note in (
        ("changed", ""),
        ("pending", " (in the file, not taken up yet)"),
        ("overlay", " (runtime-only)"),
    ):
        for line in document.get(name, []):
            yield f"{show_difference(line)}{note}"


def _format_history(document: Document) -> str:
    generations: list[dict[str, Any]] = document["generations"]
    if not generations:
        return "no settings were ever changed"
    return format_table(
        [
            ("GEN", "gen"),
            ("TIME", lambda line: show_time(line["time_ms"])),
            ("SOURCE", "source"),
            ("CHANGED", "changed"),
            ("NOTE", lambda line: ", ".join(_notes(line)) or None),
        ],
        generations,
    )


def _notes(line: dict[str, Any]) -> Iterator[str]:
    if line["current"]:
        yield "in force"
    if line["runtime_only"]:
        yield "runtime-only"


add_verbs(app, "config", {"settings.history": _format_history})
