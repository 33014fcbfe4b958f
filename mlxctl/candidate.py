"""What may stand at the end of a command line that is being typed: verbs, options, and the names that arguments take.

Walks the same commands that run, so that nothing is listed twice. Prints nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

from mlxctl.live_name import CAP_S, Names, ask_names
from mlxd.protocol.paths import Home

if TYPE_CHECKING:
    from typer._click import Command, Context

# What the shell itself knows best.
FILES = None
_FILE_WORDS = frozenset({"FILE", "PATH"})
_KIND = re.compile(r"\[?([A-Z]+)(?:\.[a-z]+)?")
# In `cloud` an ID is that of the noun after it.
_NOUN_KINDS = {"rule": "RULE", "provider": "PROVIDER"}


@dataclass(slots=True)
class _Place:
    """Where the last word stands."""

    command: Command
    ctx: Context
    path: list[str] = field(default_factory=list)
    positional: list[str] = field(default_factory=list)
    option: Any = None  # whose value comes next
    only_arguments: bool = False
    socket: Path | None = None

    @property
    def control_socket(self) -> Path:
        """The one that the line names, or the home's."""
        return Home.from_environment().socket if self.socket is None else self.socket


def complete(root: TyperGroup, words: Sequence[str], *, cap_s: float = CAP_S) -> Names | None:
    """Return what the last of *words* may become, each with what it is; None leaves it to the shell: it is a file.

    *words* are those after the program's name; the last is what has been typed of it so far, "" for nothing.
    """
    with root.make_context("mlxctl", ["status"]) as ctx:
        place = _Place(root, ctx)
        for word in words[:-1]:
            if not _walk(place, word):
                return []
        current = words[-1] if words else ""
        found = _find(place, current, cap_s)
    return found if found is None else [(name, text) for name, text in found if name.startswith(current)]


def _walk(place: _Place, word: str) -> bool:
    """Take one word that is complete; False when the line makes no sense from here on."""
    if place.option is not None:
        if place.option.name == "socket":
            place.socket = Path(word).expanduser()
        place.option = None
    elif word == "--" and not place.only_arguments:
        place.only_arguments = True
    elif word.startswith("-") and not place.only_arguments:
        name, sign, value = word.partition("=")
        option = _option(place.command, name)
        if option is not None and not option.is_flag and not sign and name != "--wait":
            place.option = option
        elif option is not None and option.name == "socket":
            place.socket = Path(value).expanduser()
    elif isinstance(place.command, TyperGroup):
        command = place.command.get_command(place.ctx, word)
        if command is None:
            return False
        place.command = command
        place.path.append(word)
    else:
        place.positional.append(word)
    return True


def _find(place: _Place, current: str, cap_s: float) -> Names | None:
    if place.option is not None:
        return _values(place, place.option, cap_s)
    if current.startswith("-") and not place.only_arguments:
        name, sign, _ = current.partition("=")
        if not sign:
            return list(_options(place.command))
        option = _option(place.command, name)
        values = None if option is None else _values(place, option, cap_s)
        return values if values is None else [(f"{name}={value}", text) for value, text in values]
    if isinstance(place.command, TyperGroup):
        return _verbs(place.command, place.ctx)
    return _arguments(place, cap_s)


def _verbs(group: TyperGroup, ctx: Context) -> Names:
    found = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and not command.hidden:
            found.append((name, command.get_short_help_str(60)))
    return found


def _options(command: Command) -> Iterator[tuple[str, str]]:
    for param in command.params:
        if param.param_type_name == "option":
            long = [name for name in param.opts if name.startswith("--")] or param.opts
            yield from ((name, getattr(param, "help", None) or "") for name in long)
    yield "--help", "Show the help."


def _option(command: Command, name: str) -> Any:
    return next((param for param in command.params if param.param_type_name == "option" and name in param.opts), None)


def _arguments(place: _Place, cap_s: float) -> Names | None:
    arguments = [param for param in place.command.params if param.param_type_name == "argument"]
    number = len(place.positional)
    if arguments and number >= len(arguments) and arguments[-1].nargs == -1:
        number = len(arguments) - 1
    return _values(place, arguments[number], cap_s) if number < len(arguments) else []


def _values(place: _Place, param: Any, cap_s: float) -> Names | None:
    """Return what a param may hold, by its type or by how its help calls it."""
    choices = getattr(param.type, "choices", None)
    if choices:
        return [(str(choice), "") for choice in choices]
    verb = " ".join(place.path)
    metavar = param.metavar or ""
    if verb in {"pool set", "config set"} or metavar.startswith(("[KEY=VALUE]", "KEY")):
        return _settings(place, verb, cap_s)
    if verb.startswith("pool set-"):
        return _setting_values(f"pool.{verb.removeprefix('pool set-').replace('-', '_')}")
    if "PROVIDER/MODEL" in metavar:
        return _names(place, "TARGET", cap_s)
    match = _KIND.match(metavar)
    kind = "" if match is None else match[1]
    return FILES if kind in _FILE_WORDS else _names(place, kind, cap_s)


def _names(place: _Place, kind: str, cap_s: float) -> Names:
    """Return the names of this kind that are not on the line yet."""
    verb = " ".join(place.path)
    if kind == "TOPIC":
        from mlxd.protocol.topic import TOPICS

        return list(TOPICS.items())
    if verb.endswith(" add") and kind == "ID":  # a new one
        return []
    if verb == "chat" and place.positional:  # the prompt
        return []
    if kind == "REQUEST" and place.path[0] == "audit":
        kind = "ENDED"
    if kind == "ID":
        kind = _NOUN_KINDS.get(place.path[-2], "")
    taken = set(place.positional)
    return [(name, text) for name, text in ask_names(kind, verb, place.control_socket, cap_s) if name not in taken]


def _settings(place: _Place, verb: str, cap_s: float) -> Names:
    """Return keys of settings, with those of models and rules that a daemon knows; or the values of one."""
    from mlxd.protocol.key import format_path
    from mlxd.protocol.table import rows

    if verb == "config set" and len(place.positional) == 1 and "=" not in place.positional[0]:
        return _setting_values(place.positional[0])
    if verb == "model set":
        return [(f"{path[-1]}=", row.help) for path, row in rows() if path[:-1] == ("models", "*")]
    found = {format_path(path): row.help for path, row in rows() if "*" not in path}
    if verb == "pool set":
        return [(f"{key.removeprefix('pool.')}=", text) for key, text in found.items() if key.startswith("pool.")]
    return list((found | dict(ask_names("KEY", verb, place.control_socket, cap_s))).items())


def _setting_values(key: str) -> Names:
    from mlxd.protocol.key import parse_path
    from mlxd.protocol.table import find_row

    try:
        row = find_row(parse_path(key))
    except ValueError:
        return []
    if row is None:
        return []
    choices = getattr(row.kind, "choices", None)
    if choices is None:
        choices = ("true", "false") if row.kind.describe() == "true or false" else ()
    return [(choice, "") for choice in choices]
