"""What `mlxctl doctor` finds, check by check, with a daemon and without."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mlxctl import doctor, doctor_daemon, doctor_home
from mlxctl.cli import main
from mlxctl.doctor import check_service, check_wired_limit
from mlxctl.doctor_daemon import check_environment
from mlxctl.finding import Finding
from mlxctl.launchd import LaunchAgent
from mlxctl.supervisor import Completed
from mlxd.protocol.errors import NotFound
from mlxd.protocol.paths import Home
from tests.support.control import running_plane
from tests.support.fake_control import FakeControl
from tests.support.fake_launchctl import FakeLaunchctl
from tests.support.status_document import GB, status_document

SUPERVISOR = "launchd" if sys.platform == "darwin" else "systemd"


class Usage(NamedTuple):
    """As `shutil.disk_usage` has it."""

    total: int
    used: int
    free: int


@pytest.fixture
def home(own_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home as it should be, on a disk with room, of an account without a service."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(500 * GB, 400 * GB, 100 * GB))
    home = Home.from_environment()
    home.root.mkdir(mode=0o700)
    home.config.write_text("[http]\nport = 0\n")
    return home


def answers(home: Home) -> dict[str, Any]:
    """Return what a daemon answers with which all is well."""
    return {
        "status": status_document(pid=os.getpid()),
        "daemon.show": {
            "pid": os.getpid(),
            "python": sys.executable,
            "home": str(home.root),
            "usable_bytes": 32 * GB,
            "open_files": 10240,
            "log": str(home.log),
            "environment": {"PATH": "/usr/bin", "HOME": os.environ["HOME"], "HF_HOME": os.environ["HF_HOME"]},
        },
        "model.list": {"models": [{"id": "org/big", "problem": None}]},
        "settings.diff": {"gen": 12, "overlay": [], "pending": [], "problem": None},
    }


@pytest.fixture
def fake(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeControl]:
    """A daemon with which all is well."""
    monkeypatch.setattr(doctor_daemon, "try_address", lambda url: None)
    with home.lock.open("w") as lock, FakeControl(home.socket, answers(home)) as control:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        home.socket.chmod(0o600)
        yield control


def examine(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Run it and return its status, and what it found that is not well, by check."""
    status = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in document["findings"]:
        if finding["verdict"] != "ok":
            found.setdefault(finding["check"], []).append(finding)
    return status, found


def test_all_is_well(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """With a healthy daemon every check is ok, each says what it saw, and the status is 0."""
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "12 checks: 12 ok, 0 to look at, 0 failed"
    assert f"ok    daemon       mlxd 0.1.0 runs, pid {os.getpid()}" in lines
    assert "                   its PATH: /usr/bin" in lines


def test_no_daemon(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon the files, the port and the service are looked at; that none runs is a warning and status 0."""
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ok    home      ~/mlxd-home, mode 0700, can be written",
        "ok    files     settings, history, logs and keys are this account's alone",
        "ok    disk      100.0 GB (93.1 GiB) free of 500.0 GB (465.7 GiB)",
        "warn  daemon    no daemon is running",
        "                try: mlxctl start",
        "ok    settings  ~/mlxd-home/config.toml can be used, each value is within its bounds",
        "ok    port      any free port of 127.0.0.1",
        f"ok    service   not installed with {SUPERVISOR}; mlxctl start runs it without",
        "",
        "7 checks: 6 ok, 1 to look at, 0 failed",
    ]


def test_no_home(own_home: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the first start nothing is wrong."""
    monkeypatch.setattr(doctor_home, "_default", {"host": "127.0.0.1", "port": 0}.get)  # another may have the real one
    status, found = examine(capsys)
    assert (status, set(found)) == (0, {"home", "daemon"})


def open_home(home: Home) -> None:
    """Let others in."""
    home.root.chmod(0o755)


def open_secret(home: Home) -> None:
    """Let others read a key."""
    home.secrets.mkdir(mode=0o700)
    (home.secrets / "openrouter").touch(mode=0o644)
    (home.secrets / "openrouter").chmod(0o644)


def open_settings(home: Home) -> None:
    """Let others write the settings."""
    home.config.chmod(0o666)


def break_settings(home: Home) -> None:
    """Write what is no TOML."""
    home.config.write_text("[http\n")


def leave_socket(home: Home) -> None:
    """Leave a socket behind as a killed daemon does."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home.socket))
    home.socket.chmod(0o600)


def put_file(home: Home) -> None:
    """Put a file in the socket's place."""
    home.socket.write_text("")


@pytest.mark.parametrize(
    ("harm", "status", "check", "what", "hint"),
    [
        (open_home, 1, "home", "open to other accounts (mode 0755)", "chmod 700 ~/mlxd-home"),
        (open_secret, 1, "secrets", "can be read by other accounts (mode 0644)", "chmod go= ~/mlxd-home/secrets/"),
        (open_settings, 0, "files", "can be written by other accounts (mode 0666)", "chmod go-w ~/mlxd-home/config"),
        (break_settings, 1, "settings", "config.toml cannot be used: ", "or move it away"),
        (leave_socket, 0, "socket", "was left behind by a daemon that was killed or has crashed", "mlxctl logs"),
        (put_file, 1, "socket", "is not a socket", "move it away"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_files(
    home: Home,
    harm: Callable[[Home], None],
    status: int,
    check: str,
    what: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each thing that can be wrong with the home's files is found, with the command that fixes it."""
    harm(home)
    exit_status, found = examine(capsys)
    assert exit_status == max(status, int(check == "socket" and harm is put_file))
    assert what in found[check][0]["what"]
    assert hint in found[check][0]["try"]


@pytest.mark.parametrize(("free", "verdict"), [(GB // 2, "fail"), (5 * GB, "warn")])
def test_full_disk(
    home: Home, free: int, verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk with little room is a warning, one with next to none a failure."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(500 * GB, 500 * GB - free, free))
    status, found = examine(capsys)
    assert found["disk"][0]["verdict"] == verdict
    assert status == (verdict == "fail")


def test_taken_port(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon the configured port is tried, so that the start that would fail is foreseen."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        home.config.write_text(f"[http]\nport = {other.getsockname()[1]}\n")
        status, found = examine(capsys)
    assert status == 1
    assert "is taken by another program" in found["port"][0]["what"]


@pytest.mark.parametrize(
    ("operation", "change", "check", "verdict", "what"),
    [
        ("status", {"version": "0.0.9"}, "daemon", "warn", "0.1.0 installed, 0.0.9 running"),
        ("daemon.show", {"python": "/gone/python"}, "daemon", "warn", "from an interpreter that is gone: /gone/python"),
        ("status", {"http": {"url": None, "problem": None}}, "http", "warn", "is not listening yet"),
        ("settings.diff", {"pending": [{"key": "pool.memory"}]}, "settings", "warn", "differs from what is in force"),
        ("settings.diff", {"overlay": [{"key": "pool.memory"}]}, "settings", "warn", "not in the file: pool.memory"),
        ("daemon.show", {"usable_bytes": GB}, "memory", "warn", "is over the usable 1.0 GB"),
        ("daemon.show", {"open_files": 256}, "open files", "warn", "may have 256 open at once"),
        ("model.list", {"models": [{"id": "x", "problem": "a shard is missing"}]}, "models", "warn", "x: a shard is"),
        ("model.list", {"models": []}, "models", "warn", "there is none on this disk"),
        ("status", {"crashes": {"last_hour": 2, "last_at_ms": 1}}, "crashes", "warn", "without a shutdown 2 times"),
        ("status", {"problems": ["over the memory limit: x"]}, "problem", "fail", "over the memory limit: x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_daemon(
    fake: FakeControl,
    operation: str,
    change: dict[str, Any],
    check: str,
    verdict: str,
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each thing that a daemon can tell of itself is judged, once, with a next command."""
    fake.answers[operation] = {**dict(fake.answers[operation]), **change}  # type: ignore[arg-type]
    status, found = examine(capsys)
    (finding,) = found[check]
    assert (finding["verdict"], status) == (verdict, int(verdict == "fail"))
    assert what in finding["what"]
    assert "mlxctl" in finding["try"] or "fix" in finding["try"] or "ulimit" in finding["try"]


def test_problem_of_the_daemon_is_told_once(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """Sockets and settings that do not work are told in the daemon's words, and no second time."""
    problems = ["port 1 is taken", "/c:3:1: no value"]
    fake.answers["status"] = status_document(
        http={"url": None, "problem": problems[0]},
        config={"path": "/c", "problem": {"code": "config.file_invalid", "msg": problems[1]}},
        problems=problems,
    )
    status, found = examine(capsys)
    assert status == 1
    assert [finding["what"] for finding in found.pop("problem")] == problems
    assert found == {}


def test_daemon_that_hangs(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon that takes the connection and says nothing is a failure."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(home.socket))
        mute.listen()
        assert main(["doctor", "--timeout", "50ms"]) == 1
    assert "fail  daemon    the daemon took the connection" in capsys.readouterr().out


def test_older_daemon(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """What an older daemon cannot say is left out."""
    for operation in ("daemon.show", "settings.diff", "model.list"):
        fake.answers[operation] = NotFound(f"there is no operation {operation!r}")
    status, found = examine(capsys)
    assert status == 0
    assert set(found) == {"models"}


@pytest.mark.parametrize(
    ("shell", "what"),
    [
        ({"HOME": "/home/eve"}, "HOME is /home/ada there and /home/eve here"),
        ({"HOME": "/home/ada", "HF_HOME": "/models"}, "HF_HOME is not set there and /models here"),
    ],
    ids=["HOME", "HF_HOME"],
)
def test_environment(shell: dict[str, str], what: str) -> None:
    """What a service sees otherwise than the shell is named: it reads no shell files."""
    process = {"home": "/home/ada/.mlxd", "environment": {"HOME": "/home/ada", "PATH": "/usr/bin"}}
    findings = list(check_environment(process, Home(Path("/home/ada/.mlxd")), shell))
    assert [(finding["verdict"], finding["what"]) for finding in findings] == [("warn", what)]
    (other,) = check_environment(process, Home(Path("/tmp/home")), {"HOME": "/home/ada"})
    assert other["what"] == "the daemon's home is /home/ada/.mlxd, this shell's /tmp/home"


def make_agent(tmp_path: Path, launchctl: FakeLaunchctl, home: Home, python: str = sys.executable) -> LaunchAgent:
    """Return a LaunchAgent that talks to the fake."""
    return LaunchAgent(
        home,
        launchctl.is_listening,
        folder=tmp_path / "LaunchAgents",
        python=python,
        run=launchctl.runner,
        sleep=launchctl.sleep,
    )


def runs(command: Sequence[str]) -> Completed:
    """Run the service's interpreter, which has mlxd."""
    assert list(command[1:]) == ["-m", "mlxd", "--version"]
    return Completed(0, "mlxd 0.1.0\n")


def one(findings: Iterator[Finding]) -> tuple[str, str]:
    """Return the one finding."""
    (finding,) = findings
    return finding["verdict"], finding["what"]


def test_service(tmp_path: Path, home: Home) -> None:
    """Of the service: not there, running, stopped, beside another daemon, for another home, without an interpreter."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl, home)
    assert one(check_service(agent, None, runs))[0] == "ok"
    agent.install()
    pid = launchctl.pid
    assert one(check_service(agent, pid, runs)) == ("ok", f"launchd runs it, pid {pid}")
    assert "is not the service's" in one(check_service(agent, 1, runs))[1]
    agent.stop()
    assert "loaded, and not running" in one(check_service(agent, None, runs))[1]
    assert "was not started by launchd" in one(check_service(agent, 1, runs))[1]
    other = make_agent(tmp_path, launchctl, Home(tmp_path / "other"))
    assert "is for another MLXD_HOME" in one(check_service(other, None, runs))[1]


def test_service_whose_interpreter_is_gone(tmp_path: Path, home: Home) -> None:
    """An upgrade that took the interpreter away is found before the next login does not start it."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl, home, python=str(tmp_path / "gone" / "python"))
    agent.install()
    findings = list(check_service(agent, launchctl.pid, runs))
    assert findings[0]["what"] == f"its interpreter is gone: {tmp_path}/gone/python"
    assert findings[0]["try"] == "mlxctl service install"


@pytest.mark.parametrize(
    ("printed", "limit_bytes", "verdict"),
    [
        ("0\n", 20 * GB, "ok"),
        ("16384\n", 20 * GB, "warn"),
        ("16384\n", 10 * GB, "ok"),
        ("16384\n", None, "ok"),
    ],
)
def test_wired_limit(printed: str, limit_bytes: int | None, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac the memory limit is held against the GPU's wired limit, where somebody set that."""
    monkeypatch.setattr(doctor, "is_mac", lambda: True)
    commands = []

    def run(command: Any) -> Completed:
        commands.append(list(command))
        return Completed(0, printed)

    assert one(check_wired_limit(limit_bytes, run))[0] == verdict
    assert commands == [["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"]]


def test_wired_limit_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such limit there is nothing to say."""
    monkeypatch.setattr(doctor, "is_mac", lambda: False)
    assert list(check_wired_limit(GB, lambda command: Completed(0, "1"))) == []
    monkeypatch.setattr(doctor, "is_mac", lambda: True)
    assert list(check_wired_limit(GB, lambda command: Completed(1, "", "unknown oid"))) == []


async def test_real_control_plane(home: Home) -> None:
    """A real control plane knows every operation that is asked, with the keys that are read."""
    async with running_plane(home) as plane:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mlxctl", "doctor", "--json", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(child.communicate(), 30)
        assert plane.stops == []
    checks = {finding["check"] for finding in json.loads(out)["findings"]}
    assert {"daemon", "http", "settings", "memory", "models", "open files", "environment", "service"} <= checks


class Health(BaseHTTPRequestHandler):
    """An HTTP server that answers as it is told to."""

    status = 200

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(self.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that listens and does not answer as it should is no working one, whatever the daemon believes."""
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        assert doctor_daemon.try_address(f"http://127.0.0.1:{port}") is None
        assert doctor_daemon.try_address(f"http://0.0.0.0:{port}") is None
        monkeypatch.setattr(Health, "status", 503)
        assert doctor_daemon.try_address(f"http://127.0.0.1:{port}") == "the server answered 503"
        server.shutdown()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        trouble = doctor_daemon.try_address(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert trouble is not None
    assert "refused" in trouble


def test_an_address_that_does_not_answer_has_failed(
    fake: FakeControl, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon says that it listens; what a client meets counts."""
    monkeypatch.setattr(doctor_daemon, "try_address", lambda url: "timed out")
    status, found = examine(capsys)
    assert status == 1
    assert found["http"][0]["what"].endswith("and a request to it failed: timed out")


def test_providers_are_called_while_the_cloud_is_on(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon calls each with its key; what came back is the finding. While the cloud is off nobody is called."""
    fake.answers["cloud.provider.list"] = {"providers": [{"id": "good"}, {"id": "bad"}]}
    fake.answers["cloud.provider.test"] = lambda frame: {
        "id": frame["p"]["id"],
        "ok": frame["p"]["id"] == "good",
        "ms": 7,
        "reason": "the key is refused",
    }
    assert examine(capsys)[0] == 0
    assert fake.asked("cloud.provider.test") == []
    status = status_document(pid=os.getpid())
    fake.answers["status"] = {**status, "cloud": {**status["cloud"], "enabled": True}}
    code, found = examine(capsys)
    assert (code, [finding["what"] for finding in found["cloud"]]) == (
        1,
        ["provider bad cannot be used: the key is refused"],
    )
    assert found["cloud"][0]["try"] == "mlxctl cloud provider test bad"


def test_the_home_is_written_to(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk has the right mode and takes no file; the file that is tried is gone afterwards."""
    assert "home" not in examine(capsys)[1]
    assert [path.name for path in home.root.iterdir()] == ["config.toml"]

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    status, found = examine(capsys)
    assert (status, found["home"][0]["what"]) == (
        1,
        "a file in ~/mlxd-home cannot be written: No space left on device",
    )


def test_settings_are_checked_without_a_daemon(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """A value out of its bounds is found before a start that would serve nothing; a deleted file names the way back."""
    home.config.write_text("[pool]\nmax_models = 0\n")
    status, found = examine(capsys)
    assert status == 1
    assert "cannot be used: pool.max_models" in found["settings"][0]["what"]
    home.config.unlink()
    home.history.mkdir()
    for generation in (9, 10):
        (home.history / f"{generation}.toml").write_text("")
    status, found = examine(capsys)
    assert status == 0
    assert found["settings"][0]["what"] == "~/mlxd-home/config.toml was deleted: the defaults hold"
    assert found["settings"][0]["try"] == "mlxctl start, then mlxctl config rollback 10"


def test_service_whose_interpreter_lost_mlxd(tmp_path: Path, home: Home) -> None:
    """An interpreter that is there and cannot run mlxd does not start it either."""
    launchctl = FakeLaunchctl()
    agent = make_agent(tmp_path, launchctl, home)
    agent.install()
    lost = Completed(1, "", "Traceback ...\nNo module named mlxd\n")
    first = next(check_service(agent, launchctl.pid, lambda command: lost))
    assert first["what"] == f"its interpreter {agent.python} cannot run mlxd: No module named mlxd"
    assert first["try"] == "mlxctl service install"
