"""The row of the table of operations, and the check of params against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mlxd.protocol.errors import InvalidRequest

_Word = Annotated[str, Meta(min_length=1)]


class ParamType(Enum):
    """What a param may hold: what messages call it, and its type."""

    TEXT = "a text that is not empty", _Word
    TOML = "a text", str
    COUNT = "a whole number of at least 0", Annotated[int, Meta(ge=0)]
    INTEGER = "a whole number", int
    BOOLEAN = "true or false", bool
    TEXTS = "a list of texts", list[_Word]
    CHANGES = "a map of settings to values", Annotated[dict[Any, Any], Meta(min_length=1)]

    def __init__(self, accepted: str, kind: Any) -> None:
        """Take the words and the type."""
        self.accepted = accepted
        self.kind = kind

    def accepts(self, value: object) -> bool:
        """Tell whether *value* is of this type."""
        try:
            msgspec.convert(value, self.kind)
        except msgspec.ValidationError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Param:
    """One param of an operation, which is an argument or an option of its verb in mlxctl.

    Attributes:
        type: what it may hold.
        help: one sentence.
        required: it must be given.
        word: what the verb's help calls its value; completion knows the names of some. Empty is the param's name.
        is_argument: the verb takes it by its place; else as an option with its name.
        table: the verb takes it in the option of this name, as NAME=VALUE.
    """

    type: ParamType
    help: str
    required: bool = False
    word: str = ""
    is_argument: bool = False
    table: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        name: what `m` holds.
        help: one sentence, and what else the help of its verb says.
        params: name → type.
        verb: its verb in mlxctl, where that is not called as the operation is.
        lists: the list in its reply that comes in pages.
        changes: True when it changes something; such operations take `idem` and `if_gen`, and run one at a time, in the
            order of their arrival.
        commits: True when it changes settings; such operations take `dry`, and `persist` unless `is_about_file`.
        plans: True when it changes something else and takes `dry` all the same.
        is_about_file: True when it makes no sense without the settings file.
        at_once: True when it changes something and waits for no turn: what ends something must not queue behind it.
        secrets: keys of its result that only the first reply has, and not one that is asked for again by `idem`.
    """

    name: str
    help: str
    params: Mapping[str, Param] = field(default_factory=dict)
    verb: str = ""
    lists: str = ""
    changes: bool = False
    commits: bool = False
    plans: bool = False
    is_about_file: bool = False
    at_once: bool = False
    secrets: frozenset[str] = frozenset()

    @property
    def mutates(self) -> bool:
        """Whether it changes something."""
        return self.changes or self.commits or self.plans or self.at_once

    @property
    def can_be_dry(self) -> bool:
        """Whether it can say what it would do, and do nothing."""
        return self.commits or self.plans

    @property
    def can_be_runtime_only(self) -> bool:
        """Whether it can change settings and leave their file alone."""
        return self.commits and not self.is_about_file


def argument(help_text: str, word: str = "", *, required: bool = True) -> Param:
    """Return a param that holds a text, and that the verb takes by its place."""
    return Param(ParamType.TEXT, help_text, required, word, is_argument=True)


def text(help_text: str, word: str = "", *, required: bool = False) -> Param:
    """Return a param that holds a text."""
    return Param(ParamType.TEXT, help_text, required, word)


def flag(help_text: str) -> Param:
    """Return a param that is true or false, false when left out."""
    return Param(ParamType.BOOLEAN, help_text)


def count(help_text: str) -> Param:
    """Return a param that holds a whole number of at least 0, and may be left out."""
    return Param(ParamType.COUNT, help_text, word="N")


# Of every list that can grow; its reply has `next`, the cursor of the next page, or null.
PAGE = {
    "limit": count("Most entries to answer with, from 1; as many as fit when left out."),
    "cursor": text("`next` of the page before; the first page when left out."),
}


def check_params(operation: Operation, params: object) -> tuple[dict[str, Any], list[str]]:
    """Return the params that the operation knows, without those that are null, and the names of those it does not know.

    Raises:
        InvalidRequest: a param is missing or of the wrong type; `param` names it.
    """
    if not isinstance(params, dict):
        raise InvalidRequest(f"the params of {operation.name} must be a map")
    given = {name: value for name, value in params.items() if value is not None}
    for name, param in operation.params.items():
        if name not in given:
            if param.required:
                raise InvalidRequest(f"{operation.name} needs {name!r}: {param.help}", param=name)
        elif not param.type.accepts(given[name]):
            raise InvalidRequest(f"{name!r} of {operation.name} must be {param.type.accepted}", param=name)
    known = {name: value for name, value in given.items() if name in operation.params}
    return known, sorted(set(given) - set(known))
