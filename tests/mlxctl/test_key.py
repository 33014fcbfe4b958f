"""`mlxctl key`: how a key gets in."""

from __future__ import annotations

import io

import pytest

from mlxctl.cli import main
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

SECRET = "sk-never-to-be-seen-2718"
KEPT = {"gen": 3, "changed": [], "auth": "file:secrets/p", "providers": ["p"], "name": "p"}


def test_a_key_comes_from_stdin(
    own_home: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is sent without its line end, and nothing that is printed holds it."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{SECRET}\n"))
    with FakeControl(Home.from_environment().socket, {"key.set": KEPT}) as fake:
        assert main(["key", "set", "p", "--provider", "p"]) == 0
        assert fake.asked("key.set") == [{"name": "p", "secret": SECRET, "provider": "p"}]
    printed = capsys.readouterr()
    assert "kept as file:secrets/p, used by p" in printed.err
    assert SECRET not in printed.out + printed.err


@pytest.mark.parametrize(
    ("line", "stdin", "words"),
    [
        (["key", "set", "p", SECRET], "", "a key is never an argument"),
        (["key", "set", "p"], " \n", "no key was given"),
    ],
)
def test_no_key(
    own_home: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: list[str],
    stdin: str,
    words: str,
) -> None:
    """A key on the command line is refused without being repeated, and so is none."""
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    assert main(line) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert SECRET not in printed.out + printed.err
