"""Nouns whose verbs follow from the table of operations: arguments, options, help, and what they ask the daemon for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import itemgetter
from typing import Annotated, Any

import typer

from mlxctl.call import Call, Document
from mlxctl.change import show_change
from mlxctl.output import format_fields, format_table
from mlxctl.setting import parse_names
from mlxctl.verb import Verb, changes, make_app
from mlxd.protocol.errors import EXIT_OTHER
from mlxd.protocol.operation import PAGE, Operation, Param, ParamType
from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.resource import RESOURCES

View = Callable[[Document], str]

_TYPES = {
    ParamType.COUNT: int,
    ParamType.INTEGER: int,
    ParamType.BOOLEAN: bool,
    ParamType.TEXTS: list[str],
    ParamType.CHANGES: list[str],
}


def make_noun(noun: str, help_text: str, views: Mapping[str, View]) -> typer.Typer:
    """Return the app of a noun, all of whose verbs are made from the table."""
    app = make_app(help_text)
    add_verbs(app, noun, views)
    return app


def find_resource(name: str) -> typer.Typer | None:
    """Return the app of the resource that is a noun of this name, if there is one."""
    resource = RESOURCES.get(name)
    return None if resource is None else make_noun(name, resource.help, {})


def add_verbs(app: typer.Typer, noun: str, views: Mapping[str, View]) -> None:
    """Give *app* a verb for each operation of the noun that it has none for, and a noun for each resource below it.

    *views* make text of replies, by operation; without one, and unless a change of settings is shown, all is shown.
    """
    written = {command.name for command in app.registered_commands}
    for row in OPERATIONS.values():
        parent, _, verb = (row.verb or row.name).rpartition(".")
        if parent == noun and verb not in written:
            view = views.get(row.name, partial(_format_all, row))
            kind = changes(row.name) if row.mutates and not row.at_once else Verb  # what ends at once is not waited for
            app.command(verb, cls=kind, help=row.help)(_make_verb(row, view))
    places = {row.verb or row.name: place for place, row in enumerate(OPERATIONS.values())}
    order = [len(places)]
    for command in app.registered_commands:  # one that is not in the table stays behind the one before it
        order.append(places.get(f"{noun}.{command.name}", order[-1]))
    app.registered_commands = [
        command for _, command in sorted(zip(order[1:], app.registered_commands, strict=True), key=itemgetter(0))
    ]
    for below, resource in RESOURCES.items():
        parent, _, name = below.rpartition(".")
        if parent == noun:
            app.add_typer(make_noun(below, resource.help, views), name=name)


def _make_verb(row: Operation, view: View) -> Callable[..., None]:
    def run(ctx: typer.Context, **given: Any) -> None:
        call = Call.of(ctx)
        params = _read(row, given, call.command)
        if row.commits:
            show_change(call, call.change(row.name, **params))
            return
        if row.mutates:
            document = call.change(row.name, **params)
        elif row.lists:
            document = call.ask_all(row.name, row.lists, **params)
        else:
            document = call.ask(row.name, **params)
        call.show(document, view)
        if document.get("ok") is False:
            raise typer.Exit(EXIT_OTHER)

    run.__signature__ = inspect.Signature(list(_parameters(row)))  # type: ignore[attr-defined]
    return run


def _parameters(row: Operation) -> Iterator[inspect.Parameter]:
    """Yield the parameters that typer makes the verb's arguments and options of."""
    yield _parameter("ctx", typer.Context)
    tables: dict[str, list[str]] = {}
    for name, param in row.params.items():
        if param.table:
            tables.setdefault(param.table, []).append(name)
        elif name != "force" and not (row.lists and name in PAGE):  # `verb.py` and `Call.ask_all` know those
            yield _of_param(name, param)
    for table, names in tables.items():
        info = typer.Option(
            f"--{table}", metavar=row.params[names[0]].word or "NAME=VALUE", help=f"Of {', '.join(names)}; with commas."
        )
        yield _parameter(table, Annotated[list[str] | None, info], default=None)


def _of_param(name: str, param: Param) -> inspect.Parameter:
    kind: Any = _TYPES.get(param.type, str)
    least = 0 if param.type is ParamType.COUNT else None
    is_list = kind == list[str]
    is_required = param.required and not is_list
    word = param.word or name.upper()
    if param.is_argument:
        placeholder = word if is_required else f"[{word}]"
        info = typer.Argument(metavar=f"{placeholder}..." if is_list else placeholder, help=param.help)
    elif param.type is ParamType.BOOLEAN:
        return _parameter(name, Annotated[bool, typer.Option(_option(name), help=param.help)], default=False)
    else:
        info = typer.Option(_option(name), metavar=word, help=param.help, min=least)
    if is_required:
        return _parameter(name, Annotated[kind, info])
    return _parameter(name, Annotated[kind | None, info], default=None)


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read(row: Operation, given: Mapping[str, Any], command: str) -> Document:
    """Return the params that were given; lists and tables in several options, or in one with commas."""
    params: Document = {}
    for name, value in given.items():
        param = row.params.get(name)
        if param is None:
            params |= _read_table(row, name, value or [])
        elif param.type is ParamType.TEXTS and not param.is_argument:
            params |= {name: split(value)} if split(value) else {}
        elif param.type is ParamType.TEXTS:
            params[name] = list(value or [])
        elif param.type is ParamType.CHANGES:
            words = [each.word or key.upper() for key, each in row.params.items() if each.is_argument]
            params |= {name: parse_names(value, f"{command} {' '.join(words)}...")} if value else {}
        elif value is not None and value is not False:
            params[name] = value
    return params


def split(items: list[str] | None) -> list[str]:
    """Return what was given in several options, or in one with commas."""
    return [part.strip() for item in items or [] for part in item.split(",")]


def _read_table(row: Operation, table: str, items: list[str]) -> Document:
    names = [name for name, param in row.params.items() if param.table == table]
    word = row.params[names[0]].word or "NAME=VALUE"
    pairs = [part.partition("=") for part in split(items)]
    for name, sign, value in pairs:
        if name not in names or not sign or not value:
            raise typer.BadParameter(f"{name!r} is not {word} with a NAME of {', '.join(names)}")
    return {name: value for name, _, value in pairs}


def _format_all(row: Operation, document: Document) -> str:
    """Return all that a reply holds, where no view says it better."""
    if not row.lists:
        return format_fields(document)
    items = document[row.lists]
    if not items:
        return f"no {row.lists}"
    return format_table([(name.upper().replace("_", " "), name) for name in items[0]], items)
