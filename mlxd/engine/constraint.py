"""Constraints on an answer: plain data, which `grammar.py` turns into a grammar for the model's tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JsonConstraint:
    """The answer is one JSON document.

    Attributes:
        schema: the JSON Schema that it satisfies, as JSON text; None allows any object.
        field: the field of the request that asked for it, for error messages.
    """

    schema: str | None = None
    field: str = "response_format"


@dataclass(frozen=True, slots=True)
class LarkConstraint:
    """The answer is a text of a grammar in llguidance's dialect of Lark.

    Attributes:
        grammar: its text; special tokens stand in it by name.
        field: the field of the request that asked for it, for error messages.
    """

    grammar: str
    field: str


@dataclass(frozen=True, slots=True)
class ToolConstraint:
    """The answer calls tools, in the format of the model.

    Attributes:
        functions: those that may be called, as JSON text: a list of objects with `name`, `parameters` (a JSON Schema)
            and `strict`. Arguments satisfy the schema; one that cannot be enforced is refused where `strict` is true,
            and is enforced by the names and types of its properties where it is not.
        is_required: whether the answer is calls and nothing else; if not, text may stand before the calls, and in place
            of them.
        parallel: whether there may be more than one call.
        schema: the JSON Schema of what may stand in place of calls, where they are not required; None allows any text.
        field: the field of the request that asked for it, for error messages.
    """

    functions: str
    is_required: bool
    parallel: bool
    field: str
    schema: str | None = None


Constraint = JsonConstraint | LarkConstraint | ToolConstraint
