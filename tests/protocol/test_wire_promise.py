"""A field never changes its type: what was promised of every operation still holds."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import pytest

from mlxd.protocol.operations import OPERATIONS
from tests.support import operation_example
from tests.support.wire_promise import broken_fields, broken_params, params_now, read_promises, shapes_now

PROMISED = read_promises()


def test_no_operation_is_gone() -> None:
    """What a client could ask for it can ask for."""
    assert set(PROMISED) - set(OPERATIONS) == set()


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_params_as_promised(name: str) -> None:
    """Params keep name and type, and none must be given that could be left out."""
    assert list(broken_params(PROMISED[name]["params"], params_now()[name])) == []


async def test_replies_as_promised() -> None:
    """Every field of every reply is still there, with a type that it had before."""
    shapes = await shapes_now()
    broken = [
        f"{name}: {line}"
        for name, promise in PROMISED.items()
        for line in broken_fields(promise["reply"], shapes.get(name, {}))
    ]
    assert broken == []


def test_every_operation_has_an_example() -> None:
    """A new operation gets its example, so that its fields are promised as well."""
    nodes = ast.walk(ast.parse(inspect.getsource(operation_example)))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    missing = set(OPERATIONS) - texts
    assert missing == set(), (
        "add examples to tests/support/operation_example.py, then: python -m tests.support.wire_promise"
    )


@pytest.mark.parametrize(
    ("promised", "now", "broken"),
    [
        ({"a": ["text"]}, {"a": ["text"], "b": ["map"]}, []),
        ({"a": ["text"]}, {}, ["a is gone"]),
        ({"a": ["integer"]}, {"a": ["boolean"]}, ["a was integer and is boolean"]),
        ({"a": ["integer", "number"]}, {"a": ["integer"]}, []),
        ({"a": ["text"]}, {"a": ["null"]}, []),
        ({"a": ["null"]}, {"a": ["map"]}, []),
    ],
)
def test_what_breaks_a_promise_about_fields(promised: Any, now: Any, broken: list[str]) -> None:
    """Additions and null break nothing; what is gone or of another type does."""
    assert list(broken_fields(promised, now)) == broken


@pytest.mark.parametrize(
    ("now", "broken"),
    [
        ({"a": {"type": "TEXT", "required": False}}, []),
        ({"a": {"type": "TEXT", "required": True}}, ["a must be given now"]),
        ({"a": {"type": "COUNT", "required": False}}, ["a was TEXT and is COUNT"]),
        ({}, ["a is gone"]),
        ({"a": {"type": "TEXT", "required": False}, "b": {"type": "TEXT", "required": False}}, []),
        ({"a": {"type": "TEXT", "required": False}, "b": {"type": "TEXT", "required": True}}, ["b must be given now"]),
    ],
)
def test_what_breaks_a_promise_about_params(now: Any, broken: list[str]) -> None:
    """A param may come or be left out; it may not go, change its type, or be asked for."""
    assert list(broken_params({"a": {"type": "TEXT", "required": False}}, now)) == broken
