"""`mlxctl service`: what its verbs print and how they exit."""

from __future__ import annotations

import json
import plistlib
import sys
from pathlib import Path

import pytest

from mlxctl import supervisor
from mlxctl.cli import main
from mlxctl.supervisor import Completed
from mlxctl.systemd import render as render_unit
from mlxd.protocol.paths import Home
from tests.support.fake_launchctl import FakeLaunchctl
from tests.support.fake_systemctl import NO_BUS, FakeSystemctl

VERBS = ["install", "uninstall", "start", "stop", "restart", "status"]


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLaunchctl:
    """A Mac: a launchd, a home folder, and a daemon that listens while launchd runs it."""
    fake = FakeLaunchctl()
    _put_in_place(fake, monkeypatch, tmp_path, is_mac=True)
    return fake


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystemctl:
    """A Linux: a systemd, a home folder, and a daemon that listens while systemd runs it."""
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    fake = FakeSystemctl(tmp_path / ".config" / "systemd" / "user")
    _put_in_place(fake, monkeypatch, tmp_path, is_mac=False)
    return fake


def _put_in_place(
    fake: FakeLaunchctl | FakeSystemctl, monkeypatch: pytest.MonkeyPatch, home: Path, *, is_mac: bool
) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(supervisor, "is_mac", lambda: is_mac)
    monkeypatch.setattr(supervisor, "run", fake.runner)
    monkeypatch.setattr("mlxctl.client.is_running", lambda path, timeout_s: fake.is_listening(path))
    monkeypatch.setattr("mlxctl.supervisor.time.sleep", fake.sleep)


@pytest.mark.parametrize("verb", VERBS)
def test_without_a_session_it_says_so(
    linux: FakeSystemctl, verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where the user's systemd cannot be reached each verb fails in words and names what to do."""
    (tmp_path / ".config/systemd/user").mkdir(parents=True)
    (tmp_path / ".config/systemd/user/mlxd.service").write_bytes(render_unit(Home.from_environment(), sys.executable))
    linux.failures["show"] = [Completed(1, "", NO_BUS)]

    assert main(["service", verb]) == 3

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0].startswith("error: this session has no systemd of its user to talk to")
    assert "try: log in as this user" in captured.err


def test_print_shows_the_plist(mac: FakeLaunchctl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plist is printed as it would be written, and nothing else."""
    assert main(["service", "print"]) == 0

    plist = plistlib.loads(capsys.readouterr().out.encode())
    assert plist["ProgramArguments"][:4] == [sys.executable, "-P", "-m", "mlxd"]
    assert plist["EnvironmentVariables"] == {"MLXD_HOME": str(tmp_path / "mlxd-home")}


def test_print_shows_the_unit(linux: FakeSystemctl, capsys: pytest.CaptureFixture[str]) -> None:
    """The unit is printed as it would be written, and nothing else."""
    assert main(["service", "print"]) == 0
    assert capsys.readouterr().out.encode() == render_unit(Home.from_environment(), sys.executable)


def test_life_of_a_service_on_linux(linux: FakeSystemctl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each verb says what is so now; what a logout does to it is noted once, at the installation."""
    said, notes = [], []
    for verb in ("install", "status", "stop", "stop", "start", "restart", "uninstall", "uninstall"):
        assert main(["service", verb]) == 0
        printed = capsys.readouterr()
        said.append(printed.out.splitlines()[0])
        notes.append(printed.err)

    assert said == [
        f"installed: mlxd runs now and after each login, with {tmp_path / 'mlxd-home'}",
        "service:   running, pid 4701",
        "stopped, until `mlxctl service start` or the next login",
        "unchanged: not running",
        "running",
        "running again",
        f"removed; {tmp_path / 'mlxd-home'} stays",
        "unchanged: it was not installed",
    ]
    assert "loginctl enable-linger" in notes[0]
    assert set(notes[1:]) == {""}


def test_life_of_a_service(mac: FakeLaunchctl, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Installed, stopped, started, restarted and removed: each verb says what is so now."""
    said = []
    for verb in ("install", "stop", "stop", "start", "restart", "uninstall", "uninstall"):
        assert main(["service", verb]) == 0
        said.append(capsys.readouterr().out.strip())

    assert said == [
        f"installed: mlxd runs now and after each login, with {tmp_path / 'mlxd-home'}",
        "stopped, until `mlxctl service start` or the next login",
        "unchanged: not running",
        "running",
        "running again",
        f"removed; {tmp_path / 'mlxd-home'} stays",
        "unchanged: it was not installed",
    ]
    assert list((tmp_path / "Library" / "LaunchAgents").iterdir()) == []


def test_status_of_a_running_service(mac: FakeLaunchctl, capsys: pytest.CaptureFixture[str]) -> None:
    """Status shows the process, where it is loaded, and no problem."""
    main(["service", "install"])
    capsys.readouterr()

    assert main(["service", "status"]) == 0

    shown = capsys.readouterr().out
    assert f"running, pid {mac.pid}" in shown
    assert f"loaded in {mac.domain}" in shown
    assert "problem" not in shown


def test_status_before_install_exits_3(mac: FakeLaunchctl, capsys: pytest.CaptureFixture[str]) -> None:
    """A script can tell by the exit status that it does not run, and a person what to do."""
    assert main(["service", "status"]) == 3

    assert "problem:   not installed: mlxctl service install" in capsys.readouterr().out


def test_status_names_an_interpreter_that_is_gone(
    mac: FakeLaunchctl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A removed virtual environment shows before the next login finds out."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/gone/bin/python")
        main(["service", "install"])
    capsys.readouterr()

    main(["service", "status", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "mlxctl/v1"
    assert document["problem"] == "its interpreter is gone (/gone/bin/python): mlxctl service install"
    assert document["current"] is False


def test_failure_of_launchctl_is_an_error_document(mac: FakeLaunchctl, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json a refusal is one document with a code, and the exit status is not 0."""
    mac.failures["bootstrap"] = [5] * 9

    assert main(["service", "install", "--json"]) == 1

    assert json.loads(capsys.readouterr().out)["error"]["code"] == "service.refused"


def test_socket_option_is_refused(mac: FakeLaunchctl, capsys: pytest.CaptureFixture[str]) -> None:
    """The service has one socket, so an option for another is not silently ignored."""
    assert main(["service", "install", "--socket", "/tmp/x.sock"]) == 2

    assert "MLXD_HOME" in capsys.readouterr().err
    assert mac.commands == []
