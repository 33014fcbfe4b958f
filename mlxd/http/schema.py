"""Reads the objects of a body into msgspec structs, whose fields say once what they take and what they do here.

A field works; or is refused at any value that would change the answer; or is left out visibly, as is a field that no
struct has (`omissions.py`); or changes nothing anywhere and is accepted. Null is the same as leaving a field out.
`msgspec.convert` does not name unknown fields, and its errors do not show values: so the structs are walked here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import orjson
from msgspec import Meta, inspect

from mlxd.http.omissions import Omissions
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import as_json, shown

_S = TypeVar("_S", bound=msgspec.Struct)
_T = TypeVar("_T", bound=msgspec.Struct)

Text = Annotated[str, Meta(min_length=1)]
Filled = Annotated[list[Any], Meta(min_length=1)]
Object = dict[str, Any]
# Changes nothing on a local server, and SDKs and apps send it by habit.
Habit = Annotated[Any, Meta(description="Accepted at any value; changes nothing here.", extra={"here": "accepted"})]


def omitted(*neutral: Any) -> Meta:
    """Describe a field that a request makes sense without: it is left out visibly, but for *neutral* values."""
    about = "Left out and named in the header x-mlxd-ignored-fields."
    return Meta(description=about, extra={"here": "omitted", "neutral": neutral})


def refused(*neutral: Any) -> Meta:
    """Describe a field that is accepted only at *neutral* values, which change nothing."""
    about = "Not acted upon: a value that changes nothing, or none."
    schema = {"enum": [None, *neutral]}
    return Meta(description=about, extra_json_schema=schema, extra={"here": "refused", "neutral": neutral})


def read_by(check: Callable[[str, Any], Any], expected: str, **schema: Any) -> Meta:
    """Describe a field that *check* reads, given its path and its value; its kind does not say it all."""
    return Meta(title=expected, extra_json_schema=schema, extra={"check": check})


class Field(NamedTuple):
    """What a struct says of a field."""

    kind: inspect.Type
    members: tuple[inspect.Type, ...]  # what the kind is made of, null apart
    as_is: frozenset[type[Any]]  # of these, every value but an empty one is taken without a look inside
    is_required: bool
    note: str  # which of its values stand for others
    here: str = "done"  # or accepted, omitted, refused
    neutral: tuple[Any, ...] = ()  # values at which one that is omitted or refused changes nothing
    check: Callable[[str, Any], Any] | None = None  # reads its values where the kind does not say it all


@functools.cache
def fields_of(shape: type[msgspec.Struct]) -> Mapping[str, Field]:
    """Return the fields of a struct by their names in JSON."""
    described = inspect.type_info(shape)
    assert isinstance(described, inspect.StructType)  # noqa: S101  (for the type checker)
    return {each.encode_name: _field(each.type, is_required=each.required) for each in described.fields}


def _field(kind: inspect.Type, *, is_required: bool = False) -> Field:
    about = kind if isinstance(kind, inspect.Metadata) else inspect.Metadata(kind)
    note = (about.extra_json_schema or {}).get("description", "")
    parts = tuple(_members(kind))
    as_is = frozenset(() if about.extra else (plain for part in parts for plain in _as_is(part)))
    return Field(kind, parts, as_is, is_required, note, **(about.extra or {}))


def _members(kind: inspect.Type) -> Iterator[inspect.Type]:
    match kind:
        case inspect.Metadata():
            yield from _members(kind.type)
        case inspect.UnionType():
            for each in kind.types:
                yield from _members(each)
        case inspect.NoneType():
            pass
        case _:
            yield kind


def _as_is(kind: inspect.Type) -> tuple[type[Any], ...]:
    inner = getattr(kind, "item_type", None) or getattr(kind, "value_type", None)  # of lists and objects
    if isinstance(kind, inspect.AnyType):
        return (bool, int, float, str, list, dict)
    if isinstance(kind, inspect.BoolType | inspect.StrType) or isinstance(inner, inspect.AnyType):
        return (_PLAIN[type(kind)][0],)
    return ()


def read(
    shape: type[_S], given: Any, omissions: Omissions, path: str = "", *, beside: type[msgspec.Struct] | None = None
) -> _S:
    """Return the object *given*, at *path* in the body, as a *shape*; its other fields are those of *beside*.

    Raises:
        UnsupportedParameter: a documented field at a value that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    if not isinstance(given, dict):
        raise wrong(path, given, "an object")
    fields = fields_of(shape)
    if not given.keys() <= fields.keys():
        omissions.note(path, given, fields if beside is None else {*fields, *fields_of(beside)})
    values = {}
    for key, value in given.items():
        field = fields.get(key)
        if value is None or field is None or field.here == "accepted":
            continue
        if value and type(value) in field.as_is:  # most are
            values[key] = value
            continue
        name = f"{path}.{key}" if path else key
        if field.check is not None:
            values[key] = field.check(name, value)
        elif field.here == "done":
            values[key] = _take(field, name, value, omissions)
        elif not any(type(value) is type(neutral) and value == neutral for neutral in field.neutral):
            _do_without(name, field, omissions)
    try:
        return shape(**values)
    except TypeError:  # it says so less well
        raise _missing(fields, values, path) from None


def read_both(shape: type[_S], other: type[_T], given: Any, omissions: Omissions, path: str = "") -> tuple[_S, _T]:
    """Return an object that has the fields of two structs as both; raises as `read`."""
    return read(shape, given, omissions, path, beside=other), read(other, given, omissions, path, beside=shape)


def _missing(fields: Mapping[str, Field], values: Collection[str], path: str) -> InvalidRequest:
    key, field = next((key, field) for key, field in fields.items() if field.is_required and key not in values)
    if path:
        return wrong(f"{path}.{key}", None, words(field.kind))
    return InvalidRequest(f"{key} is required: {words(field.kind)}", param=key)


def _do_without(name: str, field: Field, omissions: Omissions) -> None:
    if field.here == "omitted":
        omissions.leave_out(name)
        return
    remedy = " or send " + " or ".join(map(as_json, field.neutral)) if field.neutral else ""
    raise UnsupportedParameter(f"{name} is not supported; leave it out{remedy}", param=name)


def checked(hint: Any, name: str, value: Any) -> Any:
    """Return *value* of the field *name* as the type *hint* has it; raises as `read`."""
    field = _field_of(hint)
    return value if value and type(value) in field.as_is else _take(field, name, value, Omissions(""))


@functools.cache
def _field_of(hint: Any) -> Field:
    return _field(inspect.type_info(hint))


def kind_of(path: str, given: Any) -> str:
    """Return the `type` of the object *given*; raises as `read`."""
    kind = given.get("type") if isinstance(given, dict) else checked(Object, path, given)
    return kind if kind and isinstance(kind, str) else checked(Text, f"{path}.type", kind)


def dumped(name: str, value: Any) -> str:
    """Return an object as JSON; raises as `read`. What is read may be nested deeper than what can be written."""
    try:
        return orjson.dumps(checked(Object, name, value)).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{name} is nested too deep: 254 levels at most", param=name) from None


def _schema(name: str, value: Any) -> Any:
    dumped(name, value)
    return value


Schema = Annotated[Any, read_by(_schema, "an object", type="object")]


def wrong(name: str, value: object, expected: str) -> InvalidRequest:
    """Return the error that says what *name* must be and what it was."""
    return InvalidRequest(f"{name} must be {expected}, not {shown(value)}", param=name)


# Kinds by what their values are in Python, and in words.
_PLAIN: Mapping[type[inspect.Type], tuple[type[Any], str]] = {
    inspect.AnyType: (object, ""),
    inspect.BoolType: (bool, "true or false"),
    inspect.StrType: (str, "a text"),
    inspect.ListType: (list, "a list"),
    inspect.DictType: (dict, "an object"),
    inspect.StructType: (dict, "an object"),
}


def words(kind: inspect.Type) -> str:
    """Describe the values of a kind, for errors and documents."""
    match kind:
        case inspect.Metadata():
            return str((kind.extra_json_schema or {}).get("title", "")) or words(kind.type)
        case inspect.UnionType():
            return " or ".join(words(each) for each in kind.types if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType():
            *others, last = map(repr, kind.values)
            return f"{', '.join(others)} or {last}" if others else last
        case inspect.IntType():
            return f"a whole number from {kind.ge} to {kind.le}"
        case inspect.FloatType() if kind.gt is not None:
            return f"a number above {kind.gt:g} and at most {kind.le:g}"
        case inspect.FloatType():
            return f"a number from {kind.ge:g} to {kind.le:g}"
    return _PLAIN[type(kind)][1] + (" that is not empty" if getattr(kind, "min_length", 0) else "")


def _take(field: Field, name: str, value: Any, omissions: Omissions) -> Any:
    for kind in field.members:
        if _fits(kind, value):
            return _inside(kind, name, value, omissions)
    raise wrong(name, value, words(field.kind))


def _fits(kind: inspect.Type, value: Any) -> bool:
    """Tell whether *value* is of the kind, whatever is inside of it."""
    match kind:
        case inspect.IntType():  # JavaScript knows no other whole number than 1.0
            return (type(value) is int or (type(value) is float and value.is_integer())) and _is_within(kind, value)
        case inspect.FloatType():
            return type(value) in (int, float) and _is_within(kind, value)
        case inspect.LiteralType():
            return isinstance(value, str) and value in kind.values
    least: int = getattr(kind, "min_length", None) or 0
    return isinstance(value, _PLAIN[type(kind)][0]) and (not least or len(value) >= least)


def _is_within(kind: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return (
        (kind.gt is None or value > kind.gt)
        and (kind.ge is None or value >= kind.ge)
        and (kind.le is None or value <= kind.le)
    )


def _inside(kind: inspect.Type, name: str, value: Any, omissions: Omissions) -> Any:
    """Return a value of the kind, with what is inside of it taken in turn."""
    match kind:
        case inspect.IntType():
            return int(value)
        case inspect.FloatType():
            return float(value)
        case inspect.StructType():
            return read(kind.cls, value, omissions, name)
        case inspect.ListType():
            item = _field(kind.item_type)
            return [_take(item, f"{name}[{place}]", each, omissions) for place, each in enumerate(value)]
        case inspect.DictType():
            item = _field(kind.value_type)
            return {key: _take(item, f"{name}.{key[:60]}", each, omissions) for key, each in value.items()}
    return value
