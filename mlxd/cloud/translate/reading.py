"""Reading a body by a table of its fields, so that nothing in it is lost in silence on the way to another protocol.

A field is said in the other protocol, or refused at any value that would change the answer, or changes no answer and is
dropped. What the answer can do without, and a field that is in no table, is left out in the open: the client finds its
name in a response header.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import orjson

from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import as_json, shown

_SHOWN_CHARACTERS = 60
_MOST_NAMES = 20


class Treatment(Enum):
    """What becomes of a field, whatever its value."""

    SAID = auto()  # the other protocol can say it
    DROPPED = auto()  # it changes no answer


@dataclass(frozen=True, slots=True)
class Refused:
    """The other protocol cannot say it: accepted only at values that change nothing. Null always is one."""

    neutral: tuple[Any, ...] = ()
    remedy: str | None = None  # what to do; without it, to leave the field out


@dataclass(frozen=True, slots=True)
class Omitted:
    """The other protocol cannot say it, and the rest can do without: left out in the open unless it is neutral."""

    neutral: tuple[Any, ...] = ()


SAID, DROPPED = Treatment.SAID, Treatment.DROPPED
Table = Mapping[str, Treatment | Refused | Omitted]


class Reading:
    """The reading of one body for an upstream of another protocol; keeps the names of what is left out."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._left_out: dict[str, None] = {}

    @property
    def left_out(self) -> tuple[str, ...]:
        """The paths of fields that were left out, each once; at most 20."""
        return tuple(self._left_out)

    def read(self, table: Table, given: Any, path: str = "") -> dict[str, Any]:
        """Return the fields of the object *given* that are to be said and are not null.

        Raises:
            UnsupportedParameter: a field that cannot be said, at a value that would change the answer.
            InvalidRequest: no object.
        """
        values = {}
        for key, value in mapping(path or "the body", given).items():
            name = f"{path}.{key}" if path else key
            treatment = table.get(key)
            if treatment is None:
                self.leave_out(name)
            elif treatment is SAID:
                if value is not None:
                    values[key] = value
            elif isinstance(treatment, Omitted):
                if not _is_neutral(value, treatment.neutral):
                    self.leave_out(name)
            elif isinstance(treatment, Refused):
                self._check_neutral(name, value, treatment)
        return values

    def leave_out(self, path: str) -> None:
        """Note that something is not sent, which the client is told in the answer's headers."""
        if len(self._left_out) < _MOST_NAMES:
            self._left_out[path[:_SHOWN_CHARACTERS]] = None

    def leave_out_part(self, path: str, kind: str) -> str:
        """Note that a part of a message is not sent; return the text that takes its place.

        Args:
            path: where it stands.
            kind: image, audio, file, or whatever the client calls it.
        """
        self.leave_out(path)
        return f"[{kind[:_SHOWN_CHARACTERS]} omitted: it cannot be sent to this model]"

    def refusal(self, path: str, remedy: str = "leave it out", *, value: Any = None) -> UnsupportedParameter:
        """Return the error for something that cannot be said; *value*, if it is the value alone that cannot."""
        what = path if value is None else f"{path} {shown(value)}"
        return UnsupportedParameter(
            f"{what} cannot be said in {self._protocol}'s protocol, which the upstream speaks; {remedy}", param=path
        )

    def _check_neutral(self, path: str, value: Any, refused: Refused) -> None:
        if _is_neutral(value, refused.neutral):
            return
        remedy = refused.remedy
        if remedy is None:
            others = "".join(f" or send {as_json(neutral)}" for neutral in refused.neutral)
            remedy = f"leave it out{others}"
        raise self.refusal(path, remedy, value=value if refused.neutral else None)


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return value is None or any(_same(value, each) for each in neutral)


def _same(value: Any, neutral: Any) -> bool:
    if isinstance(value, bool) or isinstance(neutral, bool):
        return value is neutral
    return bool(value == neutral)  # 1 and 1.0 are one number in JSON


def wrong(path: str, value: object, expected: str) -> InvalidRequest:
    """Return the error that says what *path* must be and what it was."""
    return InvalidRequest(f"{path} must be {expected}, not {shown(value)}", param=path)


def mapping(path: str, value: Any) -> dict[str, Any]:
    """Accept an object."""
    if not isinstance(value, dict):
        raise wrong(path, value, "an object")
    return value


def listing(path: str, value: Any) -> list[Any]:
    """Accept a list."""
    if not isinstance(value, list):
        raise wrong(path, value, "a list")
    return value


def text(path: str, value: Any) -> str:
    """Accept a string, which may be empty."""
    if not isinstance(value, str):
        raise wrong(path, value, "a text")
    return value


def boolean(path: str, value: Any) -> bool:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise wrong(path, value, "true or false")
    return value


def encoded_request(body: Mapping[str, Any]) -> bytes:
    """Return *body* as JSON.

    Raises:
        InvalidRequest: it is nested deeper than JSON is written.
    """
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest("the body is nested too deep to be put into another protocol") from error
