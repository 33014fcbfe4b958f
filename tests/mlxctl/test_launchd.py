"""The LaunchAgent: its plist, and the exact launchctl commands of each verb."""

from __future__ import annotations

import os
import plistlib
import sys
from pathlib import Path

import pytest

from mlxctl.launchd import LABEL, LaunchAgent, parse_print, render
from mlxctl.supervisor import Job
from mlxd.protocol.errors import ControlError
from mlxd.protocol.paths import Home
from tests.support.fake_launchctl import FakeLaunchctl

PYTHON = sys.executable
GUI = f"gui/{os.getuid()}"
USER = f"user/{os.getuid()}"


def make_agent(tmp_path: Path, launchctl: FakeLaunchctl, *, python: str = PYTHON) -> LaunchAgent:
    """Return an agent that talks to the fake."""
    return LaunchAgent(
        Home(tmp_path / "home"),
        launchctl.is_listening,
        folder=tmp_path / "LaunchAgents",
        python=python,
        run=launchctl.runner,
        sleep=launchctl.sleep,
    )


def test_plist_is_what_launchd_needs(tmp_path: Path) -> None:
    """The rendered plist has absolute paths, decimal modes, restarts on failure only, and one environment variable."""
    home = tmp_path / "with space & <signs>"

    plist = plistlib.loads(render(Home(home), PYTHON))

    assert plist == {
        "Label": "local.mlxd",
        "ProgramArguments": [PYTHON, "-P", "-m", "mlxd", "--log-file", str(home / "logs" / "mlxd.log")],
        "EnvironmentVariables": {"MLXD_HOME": str(home)},
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive",
        "ThrottleInterval": 10,
        "ExitTimeOut": 60,
        "Umask": 0o77,
        "StandardOutPath": str(home / "logs" / "launchd.log"),
        "StandardErrorPath": str(home / "logs" / "launchd.log"),
    }


def test_home_that_looks_like_a_placeholder_is_kept(tmp_path: Path) -> None:
    """Braces in a path are no placeholders."""
    plist = plistlib.loads(render(Home(Path("/tmp/{python}")), PYTHON))

    assert plist["EnvironmentVariables"]["MLXD_HOME"] == "/tmp/{python}"


def test_print_is_read_one_level_deep() -> None:
    """A pid in a nested block is not the service's."""
    inner = "\tendpoints = {\n\t\tpid = 7\n\t}\n"
    text = f"gui/501/x = {{\n\tstate = running\n{inner}\tpid = 812\n\tlast exit code = 78: EX_CONFIG\n}}\n"

    assert parse_print(text, "gui/501") == Job("gui/501", "running", 812, "78: EX_CONFIG")


def test_print_in_words_never_seen_is_survived() -> None:
    """An answer in another form still means that the service is loaded."""
    assert parse_print("something else", "gui/501") == Job("gui/501", None, None, None)


def test_install_enables_and_bootstraps(tmp_path: Path) -> None:
    """A first install writes the plist for everyone to read and loads it into the console session."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl)

    agent.install()

    assert launchctl.mutations == [f"enable {GUI}/{LABEL}", f"bootstrap {GUI} {agent.file}"]
    assert agent.file.read_bytes() == render(agent.home, PYTHON)
    assert agent.file.stat().st_mode & 0o777 == 0o644
    assert agent.home.root.stat().st_mode & 0o777 == 0o700
    assert agent.home.logs.is_dir()
    assert [path.name for path in agent.file.parent.iterdir()] == [agent.file.name]


def test_install_over_ssh_uses_the_user_domain(tmp_path: Path) -> None:
    """Without a console session the service goes where ssh can reach it."""
    launchctl = FakeLaunchctl(has_console=False)
    agent = make_agent(tmp_path, launchctl)

    agent.install()

    assert launchctl.mutations == [f"enable {USER}/{LABEL}", f"bootstrap {USER} {agent.file}"]
    found = agent.find_job()
    assert found is not None
    assert found.domain == USER


def test_install_again_does_not_interrupt(tmp_path: Path) -> None:
    """A repeat with nothing changed makes sure that it runs, and kills nothing."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl)
    agent.install()
    launchctl.commands.clear()

    agent.install()

    assert launchctl.mutations == [f"kickstart {GUI}/{LABEL}"]


def test_install_of_a_changed_plist_waits_for_the_label(tmp_path: Path) -> None:
    """Another interpreter means bootout, a wait until the label is free, then bootstrap."""
    launchctl = FakeLaunchctl(bootout_takes=3)
    make_agent(tmp_path, launchctl, python="/old/python").install()
    launchctl.commands.clear()
    agent = make_agent(tmp_path, launchctl)

    agent.install()

    assert launchctl.mutations == [
        f"bootout {GUI}/{LABEL}",
        f"enable {GUI}/{LABEL}",
        f"bootstrap {GUI} {agent.file}",
    ]
    assert launchctl.pauses == 3
    assert agent.installed_python() == PYTHON


def test_bootstrap_error_5_is_tried_again(tmp_path: Path) -> None:
    """The error that launchd gives for a moment after a bootout passes."""
    launchctl = FakeLaunchctl()
    launchctl.failures["bootstrap"] = [5, 5]

    make_agent(tmp_path, launchctl).install()

    assert len([line for line in launchctl.mutations if line.startswith("bootstrap")]) == 3
    assert launchctl.pid is not None


def test_bootstrap_error_5_for_good_is_told_in_words(tmp_path: Path) -> None:
    """The error says what was tried, launchctl's status and words, and what to do."""
    launchctl = FakeLaunchctl()
    launchctl.failures["bootstrap"] = [5] * 5

    with pytest.raises(
        ControlError, match=r"could not load the service: .*label.*status 5: bootstrap failed"
    ) as caught:
        make_agent(tmp_path, launchctl).install()

    assert caught.value.code == "service.refused"
    assert caught.value.hint == "mlxctl service uninstall, then mlxctl service install"


def test_other_bootstrap_error_is_not_tried_again(tmp_path: Path) -> None:
    """Only error 5 passes with time."""
    launchctl = FakeLaunchctl()
    launchctl.failures["bootstrap"] = [119]

    with pytest.raises(ControlError, match="disabled"):
        make_agent(tmp_path, launchctl).install()

    assert launchctl.pauses == 0


def test_label_that_stays_taken_is_an_error(tmp_path: Path) -> None:
    """A bootout that never ends is reported and nothing is bootstrapped over it."""
    launchctl = FakeLaunchctl(bootout_takes=10_000)
    agent = make_agent(tmp_path, launchctl)
    agent.install()

    with pytest.raises(ControlError, match="launchd still holds the label after 65 s"):
        agent.uninstall()

    assert agent.is_installed


def test_daemon_that_never_answers_is_an_error(tmp_path: Path) -> None:
    """A loaded service whose daemon does not listen is reported with where to look."""
    launchctl = FakeLaunchctl()
    agent = LaunchAgent(
        Home(tmp_path / "home"),
        lambda path: False,
        folder=tmp_path / "LaunchAgents",
        run=launchctl.runner,
        sleep=launchctl.sleep,
    )

    with pytest.raises(ControlError, match="the daemon does not answer after 15 s") as caught:
        agent.install()

    assert caught.value.exit_code == 3


@pytest.mark.parametrize("verb", ["install", "start"])
def test_daemon_started_by_hand_is_not_fought(tmp_path: Path, verb: str) -> None:
    """When the home is in use by another daemon nothing is loaded, and the way out is named."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl)
    agent.install()
    launchctl.runner(["/bin/launchctl", "bootout", f"{GUI}/{LABEL}"])
    launchctl.commands.clear()
    by_hand = LaunchAgent(
        agent.home,
        lambda path: True,
        folder=agent.file.parent,
        python="/other/python",
        run=launchctl.runner,
        sleep=launchctl.sleep,
    )

    with pytest.raises(ControlError, match="not started by launchd") as caught:
        getattr(by_hand, verb)()

    assert caught.value.code == "service.busy"
    assert launchctl.mutations == []
    assert agent.is_current


def test_uninstall_unloads_and_removes(tmp_path: Path) -> None:
    """After it there is neither a job nor a plist, and a repeat says so."""
    launchctl = FakeLaunchctl(bootout_takes=2)
    agent = make_agent(tmp_path, launchctl)
    agent.install()

    assert agent.uninstall() is True
    assert agent.find_job() is None
    assert not agent.is_installed
    assert agent.uninstall() is False


def test_stop_ends_the_process_and_keeps_the_service(tmp_path: Path) -> None:
    """SIGTERM lets the daemon drain; a clean end does not make launchd restart it."""
    launchctl = FakeLaunchctl(end_takes=4)
    agent = make_agent(tmp_path, launchctl)
    agent.install()
    launchctl.commands.clear()

    assert agent.stop() is True

    assert launchctl.mutations == [f"kill SIGTERM {GUI}/{LABEL}"]
    assert launchctl.pauses == 4
    job = agent.find_job()
    assert job is not None
    assert job.pid is None
    assert agent.stop() is False


def test_start_after_stop_kickstarts(tmp_path: Path) -> None:
    """A loaded service needs no bootstrap."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl)
    agent.install()
    agent.stop()
    launchctl.commands.clear()

    agent.start()

    assert launchctl.mutations == [f"kickstart {GUI}/{LABEL}"]


def test_start_of_an_unloaded_service_bootstraps(tmp_path: Path) -> None:
    """A plist that is not loaded (a bootout by hand, a new session) is loaded."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl)
    agent.install()
    launchctl.runner(["/bin/launchctl", "bootout", f"{GUI}/{LABEL}"])
    launchctl.commands.clear()

    agent.start()

    assert launchctl.mutations == [f"enable {GUI}/{LABEL}", f"bootstrap {GUI} {agent.file}"]


def test_restart_drains_then_kickstarts(tmp_path: Path) -> None:
    """With the plist unchanged the daemon ends in peace, and a kickstart brings it back without a bootout."""
    launchctl = FakeLaunchctl(end_takes=2)
    agent = make_agent(tmp_path, launchctl)
    agent.install()
    launchctl.commands.clear()

    agent.restart()

    assert launchctl.mutations == [f"kill SIGTERM {GUI}/{LABEL}", f"kickstart {GUI}/{LABEL}"]
    assert launchctl.pid == 4712


def test_restart_after_an_upgrade_loads_the_new_plist(tmp_path: Path) -> None:
    """A plist that names another interpreter is replaced on the way."""
    launchctl = FakeLaunchctl()
    make_agent(tmp_path, launchctl, python="/old/python").install()
    launchctl.commands.clear()
    agent = make_agent(tmp_path, launchctl)

    agent.restart()

    assert [line.split()[0] for line in launchctl.mutations] == ["kill", "bootout", "enable", "bootstrap"]
    assert agent.is_current


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_verbs_before_install_name_it(tmp_path: Path, verb: str) -> None:
    """What is not installed cannot be started, and the error says which command comes first."""
    launchctl = FakeLaunchctl()

    with pytest.raises(ControlError, match="not installed") as caught:
        getattr(make_agent(tmp_path, launchctl), verb)()

    assert caught.value.hint == "mlxctl service install"
    assert launchctl.commands == []


def test_damaged_plist_names_no_interpreter(tmp_path: Path) -> None:
    """A file that is no plist reads as one without an interpreter."""
    agent = make_agent(tmp_path, FakeLaunchctl())
    agent.file.parent.mkdir()
    agent.file.write_text("<plist>")

    assert agent.installed_python() is None
    assert agent.is_current is False
