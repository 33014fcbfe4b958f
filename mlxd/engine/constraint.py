"""What an answer may be bound to: plain data, which `grammar.py` turns into a grammar for the model's tokens."""

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


Constraint = JsonConstraint | LarkConstraint
