"""The base of all errors: what they carry is bounded."""

import ast
from pathlib import Path

import pytest

import mlxctl
import mlxd
from mlxd.http.errors import detail
from mlxd.protocol.errors import InvalidRequest, MlxdError


@pytest.mark.parametrize(("length", "is_cut"), [(4000, False), (4001, True), (10**6, True)])
def test_a_message_is_bounded(length: int, is_cut: bool) -> None:
    """What a client has sent may be quoted, but not at any length: both ends of the message stay."""
    message = f"there is no {'x' * (length - 20)} anywhere"[:length].ljust(length, ".")
    wire = InvalidRequest(message, hint="y" * length, param="z" * length).to_wire()
    assert (wire["msg"] != message) == is_cut
    assert len(wire["msg"]) <= 4000
    assert (wire["msg"][:20], wire["msg"][-8:]) == (message[:20], message[-8:])
    assert max(len(wire["hint"]), len(wire["field"])) <= 500


def test_each_way_of_a_hint_is_a_line() -> None:
    """A hint may have several ways, which every renderer shows apart; without a hint there is none."""
    assert MlxdError("it failed", hint="mlxctl a\nthe same with --force").ways == ("mlxctl a", "the same with --force")
    assert MlxdError("it failed").ways == ()
    message = detail(MlxdError("it failed", hint="mlxctl a\nthe same with --force"))["message"]
    assert message == "it failed. Try: mlxctl a; or: the same with --force"


def test_no_hint_has_two_ways_in_a_line() -> None:
    """No hint in the source joins commands with a bar, which a shell would take for a pipe."""
    packages = [Path(str(package.__file__)).parent for package in (mlxd, mlxctl)]
    joined = [
        f"{path}:{part.lineno}"
        for package in packages
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "hint"
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant) and " | " in str(part.value)
    ]
    assert joined == []
