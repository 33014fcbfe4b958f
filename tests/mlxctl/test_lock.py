"""A daemon that runs is found when its socket is gone: by its lock, and by its process when its home is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxctl import lock, process
from mlxctl.cli import main
from mlxctl.lock import Holder, find_holder, find_orphan, find_unreachable, is_daemon_of
from mlxd.protocol.paths import Home

WAITS = "import signal; print(flush=True); signal.pause()"


@pytest.fixture
def home(own_home: None) -> Home:
    """The home of this test."""
    return Home.from_environment()


@pytest.fixture
def deaf(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that holds the lock and has no socket."""
    home.root.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-m", "tests.support.fake_mlxd", str(home.root), "hang"]) as child:
        while not home.lock.exists() or not home.lock.read_text():
            assert child.poll() is None
        assert find_holder(home) == Holder(child.pid, home.socket)
        yield child
        child.kill()


@pytest.mark.parametrize("arguments", [["status"], ["status", "--check"], ["ps"], ["pool", "set-max-models", "2"]])
def test_no_verb_says_that_no_daemon_runs_beside_one(
    deaf: subprocess.Popen[bytes], home: Home, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each names the process, why it may not be reached, and the command that ends it."""
    assert main(arguments) == 3
    assert capsys.readouterr().err.splitlines() == [
        f"error: the daemon (pid {deaf.pid}) of {home.root} runs, and does not listen at {home.socket}",
        "  it is starting or ending, or its socket was deleted: it makes a new one within seconds",
        "  try: the same again in some seconds",
        "  try: mlxctl stop, which ends that process",
        "  code: daemon.no_socket",
    ]


@pytest.mark.parametrize("now", [[], ["--now"]])
def test_stop_ends_a_daemon_without_a_socket(
    deaf: subprocess.Popen[bytes], now: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets a SIGTERM, as the service manager would send it, and is waited for."""
    assert main(["stop", *now]) == 0
    assert capsys.readouterr().out == f"stopped (pid {deaf.pid})\n"
    assert deaf.wait(60) == 0
    assert main(["stop"]) == 0
    assert capsys.readouterr().out == "not running\n"


def test_version_and_doctor_see_it_too(
    deaf: subprocess.Popen[bytes], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither says that nothing runs and leaves it there."""
    assert main(["version"]) == 0
    assert f"the daemon (pid {deaf.pid}) of" in capsys.readouterr().err
    assert main(["doctor"]) == 1
    assert f"the daemon (pid {deaf.pid}) of {home.root} runs" in capsys.readouterr().out


def test_start_waits_for_a_socket_that_is_made_anew(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No second daemon is tried beside one whose socket was deleted a moment ago."""
    home.root.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-m", "tests.support.fake_mlxd", str(home.root)]) as child:
        while (running := process.find_daemon(home.socket, 60.0)) is None:
            assert child.poll() is None
        running.close()
        away = home.root / "away.sock"
        home.socket.rename(away)
        monkeypatch.setattr("mlxctl.process.time.sleep", lambda _: away.rename(home.socket) if away.exists() else None)
        assert main(["start"]) == 0
        assert capsys.readouterr().out.startswith(f"already running (pid {child.pid})")
        assert main(["stop"]) == 0


def test_a_daemon_whose_home_is_gone_is_found_and_stopped(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb names it, `start` makes no new home beside it, and `stop` ends it."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        monkeypatch.setattr(lock, "find_orphan", lambda _: child.pid if child.returncode is None else None)
        threading.Thread(target=child.wait, daemon=True).start()  # it is nobody's child usually, and no zombie
        for verb in ("status", "start"):
            assert main([verb]) == 3
            error = capsys.readouterr().err
            assert f"a daemon (pid {child.pid}) runs whose home {home.root} is gone" in error
            assert "mlxctl stop, which ends that process\n" in error
        assert not home.lock.exists()
        assert main(["stop"]) == 0
        assert capsys.readouterr().out == f"stopped (pid {child.pid})\n"


def test_a_socket_of_ones_own_choice_says_nothing_of_the_homes_daemon(
    deaf: subprocess.Popen[bytes], home: Home, tmp_path: Path
) -> None:
    """Who names another socket means the daemon there, and not the one of the home."""
    assert find_unreachable(home, tmp_path / "other.sock", is_usual_socket=False) is None
    found = find_unreachable(home, tmp_path / "other.sock")
    assert found is not None
    assert (found.pid, found.error.code) == (deaf.pid, "daemon.other_socket")


@pytest.mark.parametrize(
    ("words", "is_it"),
    [
        ("/usr/bin/python3 -m mlxd --log-file /h/logs/mlxd.log MLXD_HOME=/h HOME=/u", True),
        ("/usr/bin/python3 /usr/bin/mlxd HOME=/u MLXD_HOME=/h", True),
        ("/usr/bin/mlxd MLXD_HOME=/h", True),
        ("/usr/bin/mlxd MLXD_HOME=/h/other", False),
        ("/usr/bin/mlxd HOME=/h", False),
        ("/usr/bin/python3 -m mlxd.download MLXD_HOME=/h", False),
        ("/usr/bin/mlxctl status MLXD_HOME=/h", False),
        ("/usr/bin/vi /x/mlxd.py mlxd MLXD_HOME=/h", False),
        ("", False),
    ],
)
def test_a_daemon_is_known_by_its_command_line_and_environment(words: str, is_it: bool) -> None:
    """Another program, another home or a download is not taken for it."""
    assert is_daemon_of(Home(Path("/h")), words.split()) is is_it


def test_a_daemon_without_a_home_of_its_own_has_the_usual_one() -> None:
    """Without MLXD_HOME it is the folder in the account's."""
    assert is_daemon_of(Home(Path("/u/.mlxd")), ["/usr/bin/mlxd", "HOME=/u"])


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no /proc")
def test_linux_processes_are_read(tmp_path: Path) -> None:
    """What has ended meanwhile is passed over."""
    (tmp_path / "11").mkdir()
    daemon = tmp_path / "12"
    daemon.mkdir()
    (daemon / "cmdline").write_bytes(b"/usr/bin/python3\0-m\0mlxd\0")
    (daemon / "environ").write_bytes(b"MLXD_HOME=/h\0HOME=/u\0")
    assert find_orphan(Home(Path("/h")), tmp_path) == 12
    assert find_orphan(Home(Path("/h2")), tmp_path) is None
    assert find_orphan(Home(Path(f"/nobody/{os.getpid()}"))) is None
