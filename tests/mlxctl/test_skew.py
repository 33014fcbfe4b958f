"""This mlxctl with the daemon of another version: the answers of an earlier one, and those of one from the future."""

from __future__ import annotations

import re

import pytest

from mlxctl.cli import main
from mlxd.protocol.paths import Home
from tests.support.transcript import Session, read_sessions, replay_daemon

SESSIONS = read_sessions("0.1.0")


def run(session: Session, capsys: pytest.CaptureFixture[str], *, from_the_future: bool = False) -> tuple[int, str, str]:
    """Run the command line against the recorded daemon; return exit status, stdout, and stderr without the note."""
    with replay_daemon(Home.from_environment().socket, session, from_the_future=from_the_future):
        status = main(session.argv)
    shown = capsys.readouterr()
    return (
        status,
        shown.out,
        re.sub(r"^note: \S+ installed, \S+ running: mlxctl restart\n", "", shown.err, flags=re.MULTILINE),
    )


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: " ".join(session.argv))
def test_with_other_daemons(own_home: None, capsys: pytest.CaptureFixture[str], session: Session) -> None:
    """The daemon of 0.1.0 is served as then, and keys that nobody knows change neither exit status nor errors."""
    status, out, err = run(session, capsys)
    assert (status, "Traceback" in err) == (session.exit, False), err
    assert (out != "") == (status == 0)
    later_status, later_out, later_err = run(session, capsys, from_the_future=True)
    assert (later_status, later_err) == (status, err)
    assert (later_out != "") == (status == 0)
