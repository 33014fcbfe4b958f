"""The verbs of `mlxctl config` about the file as a whole: check it, edit it, replace it, compare it, go back."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mlxctl.call import Call, Document
from mlxctl.change import show_change, show_difference
from mlxctl.editor import Draft
from mlxctl.output import format_error, format_table, print_note, show_time
from mlxctl.verb import usage_error
from mlxd.protocol.errors import (
    EXIT_CAPACITY,
    EXIT_INVALID,
    EXIT_NOT_FOUND,
    EXIT_OTHER,
    ControlError,
    FileInvalid,
)
from mlxd.protocol.settings import MAX_FILE_BYTES

_STDIN = Path("-")

OtherFile = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Another file than the one in use.")]
File = Annotated[Path, typer.Argument(metavar="FILE", help="A whole settings file; - reads stdin.")]
Generation = Annotated[int, typer.Argument(metavar="GEN", help="Generation, as `config history` lists them.")]
Generations = Annotated[
    list[int] | None, typer.Argument(metavar="[GEN [GEN]]", help="One, against the file now; or two.")
]
Runtime = Annotated[bool, typer.Option("--runtime", help="Only what is runtime-only.")]
OnDisk = Annotated[bool, typer.Option("--file", help="Only what the file on the disk says and is not in force.")]


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


def apply(ctx: typer.Context, file: File) -> None:
    """Take a whole file, all of it or nothing."""
    call = Call.of(ctx)
    show_change(call, call.change("settings.apply", text=_read(file), name=str(file)))


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


def history(ctx: typer.Context) -> None:
    """Past generations: when, by what, what changed."""
    call = Call.of(ctx)
    call.show(call.ask("settings.history"), _format_history)


def rollback(ctx: typer.Context, generation: Generation) -> None:
    """Go back to the file of an earlier generation.

    It is a change like any other, and can be undone alike. A settings file that is not valid is kept aside. API keys
    and secrets are not touched.
    """
    call = Call.of(ctx)
    show_change(call, call.change("settings.rollback", gen=generation))


# name, the operation whose options it takes, the function
VERBS: tuple[tuple[str, str | None, Callable[..., None]], ...] = (
    ("edit", "settings.apply", edit),
    ("validate", None, validate),
    ("diff", None, diff),
    ("apply", "settings.apply", apply),
    ("history", None, history),
    ("rollback", "settings.rollback", rollback),
)


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
