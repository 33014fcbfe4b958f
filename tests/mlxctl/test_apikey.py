"""`mlxctl apikey`: what is shown of a key, and what is said of one that is lost."""

from __future__ import annotations

import pytest

from mlxctl.cli import main
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

MADE: dict[str, object] = {
    "name": "app",
    "models": [],
    "rate": None,
    "created_at_ms": 1,
    "requests": 0,
    "is_first": False,
}


def test_a_key_that_was_lost_with_its_connection_is_said_to_be(
    own_home: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon sends it once: who asks again is told to make another one."""
    with FakeControl(Home.from_environment().socket, {"apikey.create": {**MADE, "key": "sk-1"}}) as fake:
        assert main(["apikey", "create", "app"]) == 0
        assert capsys.readouterr().out == "sk-1\n"
        fake.answers["apikey.create"] = MADE
        assert main(["apikey", "create", "app"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: the key 'app' was made, and lost with the connection that it was sent over: it is kept as a hash",
        "  try: mlxctl apikey revoke app",
        "  try: mlxctl apikey create app",
        "  code: apikey.lost",
    ]
