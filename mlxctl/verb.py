"""The classes of verbs and nouns: options that all of them share, options of those that change something, typos.

Owns how a command line becomes `Options`. They stand before the noun, after it or after the verb, as people type them.
Stands on typer alone, and must not import anything of a noun: only the noun that is called is loaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from mlxctl.output import print_note
from mlxd.protocol.errors import EXIT_USAGE, ControlError
from mlxd.protocol.units import parse_duration_s

if TYPE_CHECKING:
    from typer._click import Command, Context, Parameter

DEFAULT_TIMEOUT_S = 10.0
# `--wait` without a duration: a large model from a slow disk takes minutes, and every wait has an end.
DEFAULT_WAIT_S = 600.0

_WAIT_FLAG = "--wait"
_DURATION = re.compile(r"(\d+(\.\d+)?(ms|s|m|h|d))+")
# The last place at which a sentence may end early: what comes after says it more exactly.
_BREAK = re.compile(r"(.+)(?:[;:] |\. | \(|, (?:and|or|until|with|as) | before |(?<!wait) until )")
_NEGATIVE_VALUE = re.compile(r"-\.?\d")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the verb and its own arguments.

    Attributes:
        json: one JSON document on stdout instead of text.
        quiet: no notes on stderr; data and errors only.
        socket: the control socket; None is the one in MLXD_HOME.
        timeout_s: longest wait for an answer of the daemon.
        dry_run: check and plan, change nothing.
        wait_s: longest wait for what the change began; None does not wait.
        if_generation: change nothing unless the settings are of this generation.
        force: pass the checks that can be passed.
        runtime_only: leave the settings file alone; what changes is lost when the daemon ends.
    """

    json: bool = False
    quiet: bool = False
    socket: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    dry_run: bool = False
    wait_s: float | None = None
    if_generation: int | None = None
    force: bool = False
    runtime_only: bool = False

    def merged(self, given: dict[str, Any]) -> Options:
        """Return these options with those that were *given* closer to the verb."""
        return dataclasses.replace(
            self, **{name: value for name, value in given.items() if value is not None and value is not False}
        )


def usage_error(message: str, hint: str, code: str = "usage") -> ControlError:
    """Return the error that says what is wrong with the words of a command line, and the right ones."""
    return ControlError(message, exit_code=EXIT_USAGE, code=code, hint=hint)


def make_app(help_text: str) -> typer.Typer:
    """Return the typer app of one noun, whose verbs have the shared options."""
    return typer.Typer(
        cls=Noun, help=help_text, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
    )


class _WithOptions:
    """What verbs and nouns have in common: the shared options, moved from the parsed parameters into `ctx.obj`."""

    params: list[Parameter]
    help: str | None

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the first sentence for a list of verbs; one that is too long ends at a break of its own."""
        first = " ".join((self.help or "").split("\n\n")[0].split()).rstrip(".")
        while len(first) > limit and (shorter := _BREAK.match(first)) is not None:
            first = shorter[1]
        return first if len(first) <= limit else f"{first[: limit - 3].rsplit(' ', 1)[0]}..."

    def _take_options(self, ctx: Context) -> None:
        given = {name: ctx.params.pop(name) for name in _OPTION_NAMES if name in ctx.params}
        inherited = ctx.obj if isinstance(ctx.obj, Options) else Options()
        ctx.obj = inherited.merged(given)


class Verb(_WithOptions, TyperCommand):
    """A verb. A value with a leading minus is a value, so that the daemon's parser can name its bound."""

    operation: str | None = None

    def __init__(self, name: str | None, **attributes: Any) -> None:
        """Add the shared options to the verb's own."""
        super().__init__(name, **attributes)
        self.params = [*self.params, *_shared_options(), *_change_options(self.operation)]

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the line, with `--wait` standing for `--wait=` and its default, or for the duration behind it.

        In `set-keep-alive --wait 5s` the word behind it is the value: a verb with a VALUE takes `--wait=DURATION` only.
        """
        end = args.index("--") if "--" in args else len(args)
        if any(_NEGATIVE_VALUE.match(arg) for arg in args[:end]):
            ctx.ignore_unknown_options = True
        takes_next = all(param.metavar != "VALUE" for param in self.params)
        rest = super().parse_args(ctx, [*spell_out_wait(args[:end], takes_next=takes_next), *args[end:]])
        self._take_options(ctx)
        return rest


class Noun(_WithOptions, TyperGroup):
    """A group of verbs."""

    def __init__(self, **attributes: Any) -> None:
        """Add the shared options."""
        super().__init__(**attributes)
        self.params = [*self.params, *_shared_options()]

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse what stands before the verb; nothing at all prints the help."""
        if not args and not ctx.resilient_parsing:
            print_note(ctx.get_help())
            raise typer.Exit(EXIT_USAGE)
        rest = super().parse_args(ctx, args)
        self._take_options(ctx)
        return rest

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Return the verb that the line names; a typo is answered with the nearest."""
        command = self.get_command(ctx, args[0])
        if command is None:
            near = self.suggest(ctx, args[0])
            message = f"there is no verb {args[0]!r} in {ctx.command_path}"
            raise usage_error(message, near or f"{ctx.command_path} --help", "usage.unknown_verb")
        return args[0], command, args[1:]

    def suggest(self, ctx: Context, typed: str) -> str | None:
        """Return the command that *typed* was probably meant to be."""
        verbs = self.list_commands(ctx)
        # A verb that was cut short is meant before one that was mistyped.
        begun = [verb for verb in verbs if typed and verb.startswith(typed)]
        near = begun[:1] or difflib.get_close_matches(typed, verbs, n=1, cutoff=0.5)
        return f"{ctx.command_path} {near[0]}" if near else None


def spell_out_wait(args: Sequence[str], *, takes_next: bool = True) -> list[str]:
    """Return the words with every `--wait` as `--wait=DURATION`; *takes_next*: a duration behind it is its own."""
    spelled: list[str] = []
    is_open = False
    for word in args:
        if is_open and takes_next and _DURATION.fullmatch(word):
            spelled[-1], is_open = f"{_WAIT_FLAG}={word}", False
            continue
        is_open = word == _WAIT_FLAG
        spelled.append(f"{_WAIT_FLAG}={DEFAULT_WAIT_S:g}s" if is_open else word)
    return spelled


def changes(operation: str) -> type[Verb]:
    """Return the class of a verb that asks for *operation*, with the options that this operation acts upon."""
    return type("ChangingVerb", (Verb,), {"operation": operation})


def _shared_options() -> Iterator[TyperOption]:
    timeout = f"Longest wait for an answer of the daemon; {DEFAULT_TIMEOUT_S:g}s when left out."
    yield _flag("--json", help_text="Print one JSON document.")
    yield _flag("--quiet", "-q", help_text="Print data and errors only.")
    yield _option("--socket", kind=_read_path, metavar="PATH", help_text="Control socket, if not the one in MLXD_HOME.")
    yield _option("--timeout", "timeout_s", kind=read_duration, metavar="DURATION", help_text=timeout)


def _change_options(operation: str | None) -> Iterator[TyperOption]:
    if operation is None:
        return
    from mlxd.protocol.operations import OPERATIONS  # late: verbs that only ask do without

    row = OPERATIONS[operation]
    if row.can_be_dry:
        yield _flag("--dry-run", help_text="Say what would change, change nothing.")
    generation = "Refuse if the settings are not of generation N."
    yield _option("--if-generation", kind=int, metavar="N", help_text=generation)
    if row.can_be_runtime_only:
        yield _flag("--runtime-only", help_text="Leave the settings file alone: lost when the daemon ends.")
    wait = f"Wait until what it begins is done, {DEFAULT_WAIT_S / 60:g}m when the duration is left out."
    yield _option(_WAIT_FLAG, "wait_s", kind=read_duration, metavar="[=DURATION]", help_text=wait)
    if "force" in row.params:
        yield _flag("--force", help_text=row.params["force"].help)


def _flag(*names: str, help_text: str) -> TyperOption:
    return TyperOption(param_decls=list(names), is_flag=True, help=help_text)


def _option(*names: str, kind: Callable[[str], object], metavar: str, help_text: str) -> TyperOption:
    return TyperOption(param_decls=list(names), type=kind, metavar=metavar, help=help_text)


def read_duration(value: str) -> float:
    """Return the seconds of a duration that has an end and is more than nothing."""
    try:
        seconds = parse_duration_s(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(f"{value!r} is out of bounds; it must be more than 0s")
    return seconds


def _read_path(value: str) -> Path:
    return Path(value).expanduser()


_OPTION_NAMES = tuple(item.name for item in dataclasses.fields(Options))
