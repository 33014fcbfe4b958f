"""The program `mlxctl`: finds the verb, loads only its file, and turns errors into words and an exit status.

Owns the list of verbs and nouns. Must not import what they import.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
import typer.main
from typer.core import TyperGroup

from mlxctl import output
from mlxctl.verb import Noun, usage_error
from mlxd.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_OTHER, ControlError, MlxdError

if TYPE_CHECKING:
    from typer._click import Command, Context

# In the order of the help.
_VERBS = (
    *("status", "ps", "top", "events", "logs", "chat", "quickstart"),
    *("start", "stop", "restart", "doctor", "version", "completion"),
)
_NOUNS = (
    *("pool", "model", "preload", "request", "queue", "op", "cache"),
    *("cloud", "key", "apikey", "config", "audit", "service"),
)
# Verb or noun → the module that has it in its `app`, unless that is called as it is.
_MODULES = {
    "ps": "status",
    **dict.fromkeys(("start", "stop", "restart", "version"), "daemon"),
    **dict.fromkeys(("request", "queue", "op"), "running"),
}
# What completion scripts call; see `completion.py`.
_COMPLETE = "__complete"
# What click calls a whole number.
_INT = re.compile(r"a valid int(?:eger)?(?: range)?")


class Root(Noun):
    """`mlxctl` itself: verbs and nouns, each loaded when it is called."""

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002  (click's signature)
        """Return the names of all verbs and nouns."""
        from mlxd.protocol.resource import RESOURCES

        return [*_VERBS, *_NOUNS, *(noun for noun in RESOURCES if "." not in noun)]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:  # noqa: ARG002  (click's signature)
        """Load the module of a verb or noun and return its command."""
        if cmd_name in _VERBS or cmd_name in _NOUNS:
            return _load(cmd_name)
        from mlxctl.noun import find_resource

        app = find_resource(cmd_name)
        return None if app is None else _group(app, cmd_name)

    def suggest(self, ctx: Context, typed: str) -> str | None:
        """Name the noun of a verb that was typed without one; else the nearest."""
        for noun in _NOUNS:
            group = _load(noun)
            if isinstance(group, TyperGroup) and typed in group.commands:
                return f"mlxctl {noun} {typed}"
        return super().suggest(ctx, typed)


def _load(name: str) -> Command:
    """Load the module of a verb or noun; its app is the noun, or has it."""
    group = _group(importlib.import_module(f"mlxctl.{_MODULES.get(name, name)}").app, name)
    return group.commands.get(name, group)


def _group(app: typer.Typer, name: str) -> TyperGroup:
    group: TyperGroup = typer.main.get_group(app)
    group.name = name
    return group


def make_root() -> Root:
    """Return the command that the whole program is."""
    return Root(
        name="mlxctl",
        help="Steer a running mlxd: models, memory, cloud rules and settings, while it serves.",
        epilog="Sizes: GB is 10^9, GiB is 2^30. Data goes to stdout, notes and errors to stderr.",
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        subcommand_metavar="VERB [ARGS]...",
    )


def main(argv: Sequence[str]) -> int:
    """Run one command line and return its exit status: the renderer of all errors."""
    arguments = list(argv)
    try:
        _invoke(arguments)
    except typer.Exit as end:
        return end.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except typer.Abort:  # Ctrl-C or Ctrl-D at a question
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_OK  # the reader has seen enough, as in `mlxctl ps | head -1`
    except MlxdError as error:
        return _fail(error, arguments)
    except typer.TyperException as error:
        return _fail(_usage_error(error), arguments)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return _fail(ControlError(f"{where}{error.strerror or error}", code="os_error"), arguments)
    return EXIT_OK


def _invoke(arguments: list[str]) -> None:
    root = make_root()
    if arguments[:1] == [_COMPLETE]:
        _complete(root, arguments[1:])
        return
    with root.make_context("mlxctl", arguments) as ctx:
        root.invoke(ctx)


def _complete(root: Root, arguments: list[str]) -> None:
    """Answer a shell that completes a line; whatever is wrong, words would only land in the middle of the prompt."""
    from mlxctl.completion import answer

    try:
        answer(root, arguments)
    except (MlxdError, typer.TyperException, ValueError):
        raise typer.Exit(EXIT_OTHER) from None


def _usage_error(error: typer.TyperException) -> ControlError:
    ctx = getattr(error, "ctx", None)
    path = "mlxctl" if ctx is None else ctx.command_path
    text = _INT.sub("a whole number", error.format_message().rstrip("."))
    return usage_error(
        text[:1].lower() + text[1:],
        "mlxctl version" if getattr(error, "option_name", "") == "--version" else f"{path} --help",
    )


def _fail(error: MlxdError, arguments: Sequence[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    try:
        if "--json" in arguments[:end]:
            output.print_json({"error": output.describe_error(error)})
        output.print_note(output.format_error(error))
    except BrokenPipeError:
        return error.exit_code
    return error.exit_code or EXIT_OTHER
