"""The table of control operations and the checks that the server takes from it."""

from typing import Any

import pytest

from mlxd.protocol.errors import InvalidRequest, NotFound
from mlxd.protocol.operation import ParamType, check_params
from mlxd.protocol.operations import OPERATIONS, find_operation

EXAMPLES: dict[ParamType, tuple[list[Any], list[Any]]] = {
    ParamType.TEXT: (["x"], ["", 1, ["x"], {}, True]),
    ParamType.TOML: (["", "x"], [1, ["x"], {}, True]),
    ParamType.COUNT: ([0, 5], [-1, "5", 1.5, True, []]),
    ParamType.INTEGER: ([-5, 0, 5], ["5", 1.5, True, []]),
    ParamType.BOOLEAN: ([True, False], [0, 1, "true"]),
    ParamType.TEXTS: ([[], ["a", "b"]], ["a", [1], [""], {}, True]),
    ParamType.CHANGES: ([{"a": None}], [{}, [], "a=1", True]),
}


@pytest.mark.parametrize("kind", list(ParamType))
def test_each_type_accepts_its_own_values_only(kind: ParamType) -> None:
    """Every param type has values that it takes and values that it refuses."""
    good, bad = EXAMPLES[kind]
    assert [True] * len(good) == [kind.accepts(value) for value in good]
    assert [False] * len(bad) == [kind.accepts(value) for value in bad]


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda operation: operation.name)
def test_every_operation_says_what_it_does(operation: Any) -> None:
    """Every row and every param has a sentence of help."""
    assert operation.help.endswith(".")
    assert all(param.help.endswith(".") for param in operation.params.values())


def test_an_unknown_operation_names_the_nearest() -> None:
    """A slip of the pen is answered with the name that was meant."""
    assert find_operation("pool.show").name == "pool.show"
    with pytest.raises(NotFound, match=r"nearest is 'pool.show'"):
        find_operation("pool.shwo")
    with pytest.raises(NotFound, match=r"no operation 'zzzzzz'$"):
        find_operation("zzzzzz")


@pytest.mark.parametrize("name", [None, 7, ["status"], {"a": 1}])
def test_a_name_that_is_no_text_is_not_found(name: object) -> None:
    """Whatever stands in `m` is answered as an operation that does not exist."""
    with pytest.raises(NotFound):
        find_operation(name)


def test_params_are_checked_and_unknown_ones_named() -> None:
    """Known params come back, null counts as left out, unknown names are told apart."""
    operation = OPERATIONS["preload.add"]
    known, unknown = check_params(operation, {"model": "m", "at": None, "later": 1, "also": 2})
    assert known == {"model": "m"}
    assert unknown == ["also", "later"]


@pytest.mark.parametrize(
    ("params", "field"),
    [({}, "model"), ({"model": None}, "model"), ({"model": 1}, "model"), ({"model": "m", "at": -1}, "at"), ([], None)],
)
def test_a_missing_or_wrong_param_is_named(params: object, field: str | None) -> None:
    """The error carries the param's name, so that a client can point at it."""
    with pytest.raises(InvalidRequest) as caught:
        check_params(OPERATIONS["preload.add"], params)
    assert field == caught.value.param
