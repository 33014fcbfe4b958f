"""Starting and stopping the daemon's process, with a process that behaves as the daemon does."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxctl import process
from mlxctl.cli import main
from mlxctl.client import Client, is_running
from mlxctl.lock import find_holder
from mlxd.protocol.errors import ControlError
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

TIMEOUT_S = 60.0
# The daemon outlives the command that started it: that is what it is for.
pytestmark = pytest.mark.filterwarnings(r"ignore:subprocess \d+ is still running:ResourceWarning")


@pytest.fixture
def home(own_home: None) -> Iterator[Home]:
    """The home of this test; a daemon that is left in it is ended."""
    home = Home.from_environment()
    yield home
    daemon = process.find_daemon(home.socket, TIMEOUT_S)
    if daemon is not None:
        process.stop(daemon, home, now=True)
        daemon.close()


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say how the process behaves that stands for mlxd; well, unless it is called."""

    def set_mode(mode: str) -> None:
        def command(home: Home, socket: Path) -> list[str]:
            return [sys.executable, "-m", "tests.support.fake_mlxd", str(home.root), mode]

        monkeypatch.setattr(process, "daemon_command", command)

    set_mode("")
    return set_mode


def test_command_line(tmp_path: Path) -> None:
    """The daemon is run by this interpreter, logs to its home, and is told of a socket that is not the usual."""
    home = Home(tmp_path)

    usual = process.daemon_command(home, home.socket)
    assert usual == [sys.executable, "-m", "mlxd", "--log-file", f"{tmp_path}/logs/mlxd.log"]
    assert process.daemon_command(home, tmp_path / "s") == [*usual, "--socket", f"{tmp_path}/s"]


def test_start_and_stop(home: Home, behave: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon is started once, says so when it runs already, is stopped once, and each of it exits 0."""
    said = []
    for verb in ("start", "start", "stop", "stop"):
        assert main([verb]) == 0
        said.append(capsys.readouterr())

    pid = said[0].out.split("pid ")[1].split(")")[0]
    assert [part.out for part in said] == [
        f"started (pid {pid}): http://127.0.0.1:6593/v1\n",
        f"already running (pid {pid}): http://127.0.0.1:6593/v1\n",
        f"stopped (pid {pid})\n",
        "not running\n",
    ]
    assert said[0].err == "warning: the settings file is beyond me\n"


def test_daemon_is_detached(home: Home, behave: Callable[[str], None]) -> None:
    """The daemon has a session of its own, so that Ctrl-C and the end of the terminal do not reach it."""
    with process.start_detached(home, home.socket, TIMEOUT_S) as daemon:
        assert os.getsid(daemon.pid) == daemon.pid != os.getsid(0)


def test_restart_replaces_the_process(
    home: Home, behave: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """After a restart another process answers; without one before, it is a start."""
    pids = []
    for _ in range(2):
        assert main(["restart", "--json"]) == 0
        pids.append(json.loads(capsys.readouterr().out)["pid"])

    assert pids[0] != pids[1]


def test_two_starts_at_once(home: Home, behave: Callable[[str], None]) -> None:
    """Of two starts at the same moment one wins, and both come back with the same daemon."""
    pids: list[int] = []

    def start() -> None:
        with process.start_detached(home, home.socket, TIMEOUT_S) as daemon:
            pids.append(daemon.pid)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(pids) == 2
    assert pids[0] == pids[1]


def test_start_that_fails_shows_the_log(
    home: Home, behave: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon that ends before it answers is reported with its status and what it said, not what was said before."""
    behave("fail")
    home.logs.mkdir(parents=True)
    home.log.write_text("an old line\n")

    assert main(["start"]) == 1

    assert capsys.readouterr().err.splitlines() == [
        "error: the daemon ended with status 1 before it answered",
        f"  the last lines of {home.log}:",
        "  mlxd: the settings are beyond me",
        f"  try: mlxd, which runs it in the foreground, or read {home.log}",
        "  code: daemon.start_failed",
    ]


def test_start_in_a_home_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A home that the system refuses is named, and what to do."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLXD_HOME", str(tmp_path / "file"))

    assert main(["start", "--socket", str(tmp_path / "s")]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path}/file/logs cannot be made: Not a directory",
        "  try: another MLXD_HOME",
        "  code: home.unusable",
    ]


def test_start_that_hangs(home: Home, behave: Callable[[str], None]) -> None:
    """A daemon that never answers is given up after the time that is allowed, and ended: its lock is free."""
    behave("hang")

    with pytest.raises(ControlError, match="did not answer within 50ms"):
        process.start_detached(home, home.socket, 0.05)

    with home.lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_stop_leaves_others_alone(home: Home, behave: Callable[[str], None], tmp_path: Path) -> None:
    """A daemon of another home is not touched."""
    other = Home(tmp_path / "other")
    with process.start_detached(other, other.socket, TIMEOUT_S) as daemon:
        assert main(["stop"]) == 0
        assert is_running(other.socket, TIMEOUT_S)
        process.stop(daemon, other, now=True)


def test_stop_waits_for_the_end_of_the_process(home: Home, behave: Callable[[str], None]) -> None:
    """When stop comes back the lock is free: the next daemon finds it so."""
    with process.start_detached(home, home.socket, TIMEOUT_S) as daemon:
        process.stop(daemon, home, now=False)

    with process.start_detached(home, home.socket, TIMEOUT_S) as next_daemon:
        assert next_daemon.pid != daemon.pid


def test_stop_that_takes_too_long(home: Home, behave: Callable[[str], None]) -> None:
    """A daemon that does not end in time is reported with the command that does not wait."""
    with process.start_detached(home, home.socket, TIMEOUT_S) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ControlError) as caught:
                stop_frozen(daemon, home)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)

    assert caught.value.exit_code == 7


def stop_frozen(daemon: Client, home: Home) -> None:
    """Ask a daemon that cannot answer."""
    daemon.timeout_s = 0.05
    process.stop(daemon, home, now=False, timeout_s=0.05)


def test_daemon_that_hangs_is_ended_by_force(
    home: Home,
    behave: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A daemon that does not answer is named by stop with its pid, and ended by `stop --now`, even when frozen."""
    monkeypatch.setattr(process, "_END_TIMEOUT_S", 0.05)
    with process.start_detached(home, home.socket, TIMEOUT_S) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)

        assert main(["stop", "--timeout", "50ms"]) == 3
        assert f"try: mlxctl stop --now, which ends its process (pid {daemon.pid})" in capsys.readouterr().err
        assert main(["stop", "--timeout", "50ms", "--now"]) == 0
        assert capsys.readouterr().out == f"stopped (pid {daemon.pid})\n"

    assert find_holder(home) is None


def test_version_without_a_daemon(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """The installed version is known without a daemon."""
    assert main(["version"]) == 0
    assert capsys.readouterr().out == "mlxd 0.1.0 installed, not running\n"


def test_start_during_a_shutdown(home: Home, behave: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    """A start waits for a daemon that is shutting down, says so, and then starts another."""
    behave("drain")
    with process.start_detached(home, home.socket, TIMEOUT_S) as ending:
        behave("")
        assert main(["start", "--json"]) == 0
    started = capsys.readouterr()

    assert started.err == f"note: the daemon (pid {ending.pid}) is shutting down: waiting for 1 request to end\n"
    document = json.loads(started.out)
    assert document["result"] == "started"
    assert document["pid"] != ending.pid


def test_start_gives_a_long_shutdown_up(
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A shutdown that takes longer than a stop may is a conflict, with the way out."""
    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 0.01)
    with FakeControl(home.socket, {"status": {"requests": [], "pool": {"draining": True}}}):
        assert main(["start"]) == 5
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "  try: mlxctl stop --now, then mlxctl start",
        "  code: daemon.ending",
    ]


@pytest.mark.parametrize("verb", ["start", "stop", "status", "restart"])
def test_home_whose_daemon_has_another_socket(
    home: Home, behave: Callable[[str], None], verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon of this home that listens elsewhere is found by its lock and named, at once, by every verb."""
    other = home.root / "other.sock"
    behave(str(other))
    with process.start_detached(home, other, TIMEOUT_S) as daemon:
        try:
            assert main([verb]) == 5
        finally:
            process.stop(daemon, home, now=True)
    assert capsys.readouterr().err.splitlines() == [
        f"error: the daemon of {home.root} (pid {daemon.pid}) listens on {other}, not on {home.socket}",
        f"  try: mlxctl --socket {other} status",
        "  code: daemon.other_socket",
    ]
