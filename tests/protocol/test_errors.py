"""The base of all errors: what they carry is bounded."""

import pytest

from mlxd.protocol.errors import InvalidRequest


@pytest.mark.parametrize(("length", "is_cut"), [(4000, False), (4001, True), (10**6, True)])
def test_a_message_is_bounded(length: int, is_cut: bool) -> None:
    """What a client has sent may be quoted, but not at any length: both ends of the message stay."""
    message = f"there is no {'x' * (length - 20)} anywhere"[:length].ljust(length, ".")
    wire = InvalidRequest(message, hint="y" * length, param="z" * length).to_wire()
    assert (wire["msg"] != message) == is_cut
    assert len(wire["msg"]) <= 4000
    assert (wire["msg"][:20], wire["msg"][-8:]) == (message[:20], message[-8:])
    assert max(len(wire["hint"]), len(wire["field"])) <= 500
