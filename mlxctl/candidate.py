"""The words that may stand at the end of a command line that is being typed: verbs, options, and what they take.

typer walks the line, by the same commands that run, so that nothing is listed twice. Names are asked of a running
daemon, in 150 ms or not at all: completing a line starts nothing. Prints nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer._click.shell_completion import _resolve_context, _resolve_incomplete
from typer.core import TyperArgument, TyperCommand, TyperGroup

from mlxctl.client import Client
from mlxctl.verb import Options, spell_out_wait
from mlxd.protocol.errors import ControlError
from mlxd.protocol.event import TOPICS
from mlxd.protocol.key import format_path, parse_path
from mlxd.protocol.paths import Home
from mlxd.protocol.resource import RESOURCES
from mlxd.protocol.table import find_row, rows

if TYPE_CHECKING:
    from typer._click import Context

# A key press waits for this.
CAP_S = 0.15
# What the shell itself knows best.
FILES = None
_FILE_WORDS = frozenset({"FILE", "PATH"})
_KIND = re.compile(r"\[?([A-Z]+)(?:\.[a-z]+)?")

# name and what it is
Names = list[tuple[str, str]]
Map = Mapping[str, Any]


def complete(root: TyperGroup, words: Sequence[str], *, cap_s: float = CAP_S) -> Names | None:
    """Return what the last of *words* may become, each with what it is; None leaves it to the shell: it is a file.

    *words* are those after the program's name; the last is what has been typed of it so far, "" for nothing.
    """
    *before, typed = words or [""]
    arguments = spell_out_wait(before)
    try:
        ctx = _resolve_context(root, {}, "mlxctl", arguments)
    except ControlError:  # there is no such verb
        return []
    place, current = _resolve_incomplete(ctx, arguments, typed)
    if isinstance(place, TyperCommand | TyperGroup):
        return [(item.value, item.help or "") for item in place.shell_complete(ctx, current)]
    found = _values(ctx, place, cap_s)
    if found is FILES:
        return FILES
    prefix = typed.removesuffix(current)  # of --option=value
    return [(prefix + name, text) for name, text in found if name.startswith(current)]


def _values(ctx: Context, param: Any, cap_s: float) -> Names | None:
    """Return what a param may hold, by its type or by how its help calls it; names that the line has are left out."""
    choices = getattr(param.type, "choices", None)
    if choices:
        return [(str(choice), "") for choice in choices]
    verb = ctx.command_path.removeprefix("mlxctl ")
    taken = [word for words in _positional(ctx) for word in words]
    metavar = param.metavar or ""
    if verb in {"pool set", "config set"} or metavar.startswith(("[KEY=VALUE]", "KEY")):
        return _settings(ctx, verb, taken, cap_s)
    if verb.startswith("pool set-"):
        return _setting_values(f"pool.{verb.removeprefix('pool set-').replace('-', '_')}")
    match = _KIND.match(metavar)
    kind = "TARGET" if "PROVIDER/MODEL" in metavar else "" if match is None else match[1]
    if kind in _FILE_WORDS:
        return FILES
    if kind == "TOPIC":
        return [(name, text) for name, text in TOPICS.items() if name not in taken]
    if (verb.endswith(" add") and kind == "ID") or (verb == "chat" and taken):  # a new name; the prompt
        return []
    if kind == "ID":
        kind = ".".join(verb.split()[:-1])
    if kind == "REQUEST" and verb.startswith("audit "):
        kind = "ENDED"
    return [(name, text) for name, text in ask_names(kind, verb, _socket(ctx), cap_s) if name not in taken]


def _positional(ctx: Context) -> Iterable[Sequence[str]]:
    for param in ctx.command.params:
        value = ctx.params.get(param.name or "")
        if isinstance(param, TyperArgument) and value is not None:
            yield [value] if isinstance(value, str) else value


def _socket(ctx: Context) -> Path:
    """Return the socket that the line names, or the home's."""
    given = ctx.obj.socket if isinstance(ctx.obj, Options) else None
    return Home.from_environment().socket if given is None else given


def _settings(ctx: Context, verb: str, taken: Sequence[str], cap_s: float) -> Names:
    """Return keys of settings, with those of models and rules that a daemon knows; or the values of one."""
    if verb == "config set" and len(taken) == 1 and "=" not in taken[0]:
        return _setting_values(taken[0])
    if verb == "model set":
        return [(f"{path[-1]}=", row.help) for path, row in rows() if path[:-1] == ("models", "*")]
    found = {format_path(path): row.help for path, row in rows() if "*" not in path}
    if verb == "pool set":
        return [(f"{key.removeprefix('pool.')}=", text) for key, text in found.items() if key.startswith("pool.")]
    return list((found | dict(ask_names("KEY", verb, _socket(ctx), cap_s))).items())


def _setting_values(key: str) -> Names:
    try:
        row = find_row(parse_path(key))
    except ValueError:
        return []
    return [] if row is None else [(choice, "") for choice in row.kind.choices]


def ask_names(kind: str, verb: str, socket: Path, cap_s: float) -> Names:
    """Return the names of this *kind* that make sense for the verb; none when the daemon does not answer in time.

    Args:
        kind: how the help calls it: MODEL, OP, REQUEST, APIKEY, KEY, GEN; ENDED, a request of the log; or a resource's
            noun, or the word for one of its entries.
        verb: the whole verb, such as `model unload`.
        socket: the control socket.
        cap_s: how long all of it may take.
    """
    source = _SOURCES.get(kind) or _find_resource(kind)
    if source is None:
        return []
    operation, rows_name, read = source
    is_meant = _MEANT.get(verb, bool)
    deadline_s = time.monotonic() + cap_s
    found: dict[str, str] = {}
    try:
        with Client(socket, cap_s) as client:
            left_s = max(0.001, deadline_s - time.monotonic())
            for row in client.request(operation, timeout_s=left_s).result[rows_name]:
                for name, text in read(row) if is_meant(row) else ():
                    found.setdefault(name, text)
    except (ControlError, KeyError, TypeError):  # an older daemon's answer is of no use, and nothing to complain about
        return []
    return list(found.items())


def _read_model(row: Map) -> Iterable[tuple[str, str]]:
    yield row["id"], str(row.get("state") or row.get("problem") or "model")
    for alias in row.get("aliases") or ():
        yield alias, f"alias of {row['id']}"


def _named(name: str, text: Callable[[Map], object]) -> Callable[[Map], Iterable[tuple[str, str]]]:
    """Return what reads one name from a row, which is its *name*."""
    return lambda row: [(str(row[name]), str(text(row)))]


def _find_resource(kind: str) -> _Source | None:
    """Return how to list the entries of the resource called *kind*, each with its fields that have no default."""
    for resource in RESOURCES.values():
        if kind in {resource.noun, resource.word.upper()}:
            told = [name for name, (_, row) in resource.fields.items() if row.is_required]
            text = partial(_join, names=told)
            return f"{resource.noun}.list", resource.lists, _named(resource.id[0], text)
    return None


def _join(row: Map, names: Sequence[str]) -> str:
    return " ".join(str(row[name]) for name in names if name in row)


# The operation that lists names, its list there, and how to read a row of that.
_Source = tuple[str, str, Callable[[Map], Iterable[tuple[str, str]]]]
_SOURCES: dict[str, _Source] = {
    "MODEL": ("model.list", "models", _read_model),
    "OP": (
        "op.list",
        "operations",
        _named("op", lambda row: f"{row['kind']} {' '.join(row['models'])}, {row['state']}"),
    ),
    "REQUEST": ("ps", "requests", _named("id", lambda row: f"{row['model']}, {row['state']}")),
    "ENDED": (
        "audit.list",
        "requests",
        _named("request", lambda row: f"{row['model'] or 'no model'}, {row['status']}"),
    ),
    "APIKEY": ("apikey.list", "keys", _named("name", lambda row: ", ".join(row["models"]) or "all models")),
    "TARGET": ("cloud.rule.list", "rules", lambda row: [(target, f"of rule {row['id']}") for target in row["to"]]),
    "KEY": ("settings.list", "settings", _named("key", lambda row: row["help"])),
    "GEN": (
        "settings.history",
        "generations",
        _named("gen", lambda row: f"{row['source'] or 'unknown'}: {', '.join(row['changed']) or 'comments'}"),
    ),
}
# verb → which rows it is for.
_MEANT: dict[str, Callable[[Map], bool]] = {
    "model unload": lambda row: row.get("state") in {"loading", "ready", "draining"},
    "model unpin": lambda row: bool(row.get("pinned")),
    "preload remove": lambda row: bool(row.get("preload")),
    "op wait": lambda row: row["state"] == "running",
    "op cancel": lambda row: row["state"] == "running",
    # A generation that is runtime-only has no file to compare or to go back to.
    "config diff": lambda row: not row["runtime_only"],
    "config rollback": lambda row: not row["runtime_only"],
}
