"""The systemd user unit: its file, and the exact systemctl commands of each verb."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxctl.supervisor import Completed, Job, run
from mlxctl.systemd import UNIT, UserUnit, parse_show, quote, render, unquote
from mlxd.protocol.errors import ControlError
from mlxd.protocol.paths import Home
from tests.support.fake_systemctl import NO_BUS, FakeSystemctl

PYTHON = sys.executable
RELOAD, ENABLE = "systemctl --user daemon-reload", f"systemctl --user enable --quiet {UNIT}"
START = [f"systemctl --user reset-failed {UNIT}", f"systemctl --user start {UNIT}"]


def make_unit(
    tmp_path: Path, systemd: FakeSystemctl, *, python: str = PYTHON, is_listening: Callable[[Path], bool] | None = None
) -> UserUnit:
    """Return a unit that talks to the fake."""
    return UserUnit(
        Home(tmp_path / "home"),
        systemd.is_listening if is_listening is None else is_listening,
        folder=tmp_path / "units",
        python=python,
        run=systemd.runner,
        sleep=systemd.sleep,
    )


@pytest.fixture
def systemd(tmp_path: Path) -> FakeSystemctl:
    """A user's systemd that reads the units of this test."""
    return FakeSystemctl(tmp_path / "units")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """The check of systemd itself takes the unit, with odd paths too, and sees each setting in it."""
    home = tmp_path / 'a "home" 100% $HOME \\ {log}'
    python = tmp_path / "py $thon" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    unit = tmp_path / UNIT
    unit.write_bytes(render(Home(home), str(python)))

    command = ["systemd-analyze", "verify", "--user", "--man=no", str(unit)]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert (done.returncode, done.stderr) == (0, "")
    python.unlink()  # and it is no check that passes everything
    assert subprocess.run(command, capture_output=True, check=False, env=environment).returncode != 0


def test_unit_is_what_the_daemon_needs(tmp_path: Path) -> None:
    """Restart on failure only, time to drain, a private umask, one environment variable."""
    lines = render(Home(Path("/tmp/ho me")), PYTHON).decode().splitlines()

    settings = [line for line in lines if line and not line.startswith(("#", "["))]
    assert settings == [
        "Description=mlxd, a local server for MLX models",
        "Type=exec",
        f'ExecStart=:"{PYTHON}" -P -m mlxd --log-file "/tmp/ho me/logs/mlxd.log"',
        'Environment="MLXD_HOME=/tmp/ho me"',
        "Restart=on-failure",
        "RestartSec=10",
        "TimeoutStopSec=60",
        "KillMode=mixed",
        "UMask=0077",
        "WantedBy=default.target",
    ]


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]), min_size=1))
def test_words_come_back(text: str) -> None:
    """What is quoted for a unit file is read from it as it was."""
    assert unquote(quote(text) + ' -P "more"') == text


def test_path_with_a_line_break_is_refused() -> None:
    """A path that would end the line of the unit file is refused, not written."""
    with pytest.raises(ControlError, match="control character") as caught:
        render(Home(Path("/tmp/a\nExecStartPre=b")), PYTHON)
    assert caught.value.code == "service.unusable_path"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("LoadState=not-found\nMainPID=0\n", None),
        ("", None),
        (
            "MainPID=812\nLoadState=loaded\nActiveState=active\nSubState=running\nExecMainCode=0\nExecMainStatus=0\n",
            Job("the user manager", "active (running)", 812, None),
        ),
        (
            "MainPID=0\nLoadState=loaded\nActiveState=failed\nSubState=failed\nExecMainCode=1\nExecMainStatus=203\n",
            Job("the user manager", "failed (failed)", None, "exit status 203"),
        ),
        (
            "MainPID=0\nLoadState=loaded\nActiveState=failed\nResult=timeout\nExecMainCode=2\nExecMainStatus=9\n",
            Job("the user manager", "failed", None, "signal 9 (timeout)"),
        ),
        ("LoadState=loaded\nsomething else", Job("the user manager", None, None, None)),
    ],
)
def test_what_systemctl_shows(shown: str, expected: Job | None) -> None:
    """State, process and last end are read from the properties, in whatever order; what is missing is survived."""
    assert parse_show(shown) == expected


def test_install_enables_and_starts(tmp_path: Path, systemd: FakeSystemctl) -> None:
    """A first install writes the unit, lets systemd read it, and starts it now and at each login."""
    unit = make_unit(tmp_path, systemd)

    unit.install()

    assert systemd.mutations == [RELOAD, ENABLE, *START]
    assert systemd.content == render(unit.home, PYTHON)
    assert systemd.is_enabled
    assert unit.file.stat().st_mode & 0o777 == 0o644
    assert unit.home.root.stat().st_mode & 0o777 == 0o700
    assert unit.owns_home
    assert unit.installed_python() == PYTHON
    assert [path.name for path in unit.file.parent.iterdir()] == [UNIT]


def test_install_again_does_not_interrupt(tmp_path: Path, systemd: FakeSystemctl) -> None:
    """A repeat with nothing changed makes sure that it runs, and kills nothing."""
    unit = make_unit(tmp_path, systemd)
    unit.install()
    pid = systemd.pid
    systemd.commands.clear()

    unit.install()

    assert systemd.mutations == [ENABLE, *START]
    assert systemd.pid == pid


@pytest.mark.parametrize(
    ("verb", "commands"),
    [
        ("install", [RELOAD, ENABLE, f"systemctl --user restart {UNIT}"]),
        ("restart", [f"systemctl --user stop {UNIT}", RELOAD, ENABLE, *START]),
    ],
)
def test_changed_unit_is_put_in_place(tmp_path: Path, systemd: FakeSystemctl, verb: str, commands: list[str]) -> None:
    """With another interpreter the unit is written anew and the daemon runs under it."""
    make_unit(tmp_path, systemd, python="/old/python").install()
    systemd.commands.clear()
    unit = make_unit(tmp_path, systemd)

    getattr(unit, verb)()

    assert systemd.mutations == commands
    assert systemd.running_content == render(unit.home, PYTHON)


def test_life_of_the_unit(tmp_path: Path, systemd: FakeSystemctl) -> None:
    """Stopped it stays installed, started and restarted it runs, uninstalled nothing is left."""
    unit = make_unit(tmp_path, systemd)
    unit.install()

    assert (unit.stop(), unit.stop(), systemd.pid, systemd.is_enabled) == (True, False, None, True)
    unit.start()
    first = systemd.pid
    unit.restart()
    assert None not in {first, systemd.pid}
    assert systemd.pid != first

    assert unit.uninstall() is True
    assert (systemd.pid, systemd.is_enabled, systemd.content, unit.is_installed) == (None, False, None, False)
    assert unit.uninstall() is False


def test_start_of_a_unit_that_was_not_read(tmp_path: Path, systemd: FakeSystemctl) -> None:
    """A unit file that systemd does not know yet (restored from a backup) is read first."""
    unit = make_unit(tmp_path, systemd)
    unit.file.parent.mkdir()
    unit.file.write_bytes(render(unit.home, PYTHON))

    unit.start()

    assert systemd.mutations == [RELOAD, *START]
    assert systemd.pid is not None


@pytest.mark.parametrize("verb", ["install", "start"])
def test_daemon_started_by_hand_is_not_fought(tmp_path: Path, systemd: FakeSystemctl, verb: str) -> None:
    """When the home is in use by another daemon nothing is started, and the way out is named."""
    make_unit(tmp_path, systemd).install()
    systemd.pid = None
    systemd.commands.clear()
    unit = make_unit(tmp_path, systemd, python="/bin/sh", is_listening=lambda path: True)

    with pytest.raises(ControlError, match="not started by systemd") as caught:
        getattr(unit, verb)()

    assert (caught.value.code, caught.value.hint) == ("service.busy", "mlxctl stop, then the same again")
    assert systemd.mutations == []


def test_start_with_an_interpreter_that_is_gone(tmp_path: Path, systemd: FakeSystemctl) -> None:
    """A removed virtual environment is named at once, instead of a daemon that does not answer."""
    make_unit(tmp_path, systemd, python="/gone/bin/python").install()
    systemd.pid = None

    with pytest.raises(ControlError, match=r"interpreter is gone \(/gone/bin/python, in .*mlxd\.service\)") as caught:
        make_unit(tmp_path, systemd).start()

    assert caught.value.hint == "mlxctl service install, which writes it anew"


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_verbs_before_install_name_it(tmp_path: Path, systemd: FakeSystemctl, verb: str) -> None:
    """What is not installed cannot be started, and the error says which command comes first."""
    with pytest.raises(ControlError, match="not installed") as caught:
        getattr(make_unit(tmp_path, systemd), verb)()
    assert caught.value.hint == "mlxctl service install"


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (Completed(1, "", NO_BUS), "service.no_session", "no systemd of its user"),
        (Completed(127, "", "no such file"), "service.unsupported", "systemctl was not found"),
        (Completed(1, "", "Unit is masked."), "service.refused", r"systemctl status 1: Unit is masked\."),
    ],
)
def test_refusals_are_told_in_words(
    tmp_path: Path, systemd: FakeSystemctl, answer: Completed, code: str, words: str
) -> None:
    """No bus, no systemd, and what systemctl itself says: each with a code and the next step; nothing is written."""
    systemd.failures["show"] = [answer]

    with pytest.raises(ControlError, match=words) as caught:
        make_unit(tmp_path, systemd).install()

    assert caught.value.code == code
    assert caught.value.hint
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize(("lingers", "is_told"), [(False, True), (True, False), (None, False)])
def test_lingering(tmp_path: Path, lingers: bool | None, is_told: bool) -> None:
    """Whoever does not linger is told how to keep the daemon after a logout."""
    advice = make_unit(tmp_path, FakeSystemctl(tmp_path, lingers=lingers)).find_advice()
    assert ("loginctl enable-linger" in (advice or "")) is is_told


def test_program_that_is_not_there() -> None:
    """A supervisor's program that does not exist ends like in a shell, with 127."""
    assert run(["/nowhere/systemctl"]).status == 127
