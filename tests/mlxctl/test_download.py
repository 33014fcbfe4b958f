"""`mlxctl model pull`: the download program as a child."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxctl.cli import main
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

PROGRESS = {"event": "progress", "phase": "downloading", "done": 46_000_000, "total": 92_000_000}
DONE = {"event": "done", "id": "smollm2-135m-instruct", "path": "/m/smollm2", "already": False}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Say which lines the download program prints and how it exits; returns the command lines that it got."""
    real_popen = subprocess.Popen
    commands: list[list[str]] = []

    def behave(*events: dict[str, Any], status: int = 0) -> list[list[str]]:
        text = "\n".join(json.dumps(event) for event in events)

        def popen(command: list[str], **options: Any) -> subprocess.Popen[str]:
            commands.append(command)
            options["cwd"] = None
            return real_popen([sys.executable, "-c", f"print({text!r}); raise SystemExit({status})"], **options)

        monkeypatch.setattr("mlxctl.download.subprocess.Popen", popen)
        return commands

    return behave


def test_pull(child: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]) -> None:
    """Where the model is goes to stdout, progress and notes to stderr; no daemon is needed."""
    commands = child(PROGRESS, {"event": "note", "msg": "waiting"}, DONE)

    assert main(["model", "pull", "starter", "--dtype", "float32"]) == 0

    printed = capsys.readouterr()
    assert printed.out == "smollm2-135m-instruct is ready: /m/smollm2\n"
    assert printed.err == "downloading: 50 % of 92.0 MB (87.7 MiB)\nnote: waiting\n"
    assert commands[0][1:] == ["-m", "mlxd.download", "pull", "starter", "--dtype", "float32"]


def test_import(
    child: Callable[..., list[list[str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A file is handed on by its whole path, as the program works in another folder; a running daemon is told."""
    commands = child({**PROGRESS, "phase": "converting"}, {**DONE, "id": "x"})
    monkeypatch.chdir(tmp_path)
    with FakeControl(Home.from_environment().socket, {"catalog.rescan": {}}) as fake:
        assert main(["model", "import", "-x.gguf", "--name", "x"]) == 2  # an option of that name there is not
        assert main(["model", "import", "--name", "x", "--bits", "8", "--", "-x.gguf"]) == 0
        assert fake.asked("catalog.rescan") == [{}]
    assert capsys.readouterr().out == "x is ready: /m/smollm2\n"
    assert commands[0][1:] == [
        "-m",
        "mlxd.download",
        "import",
        "--name",
        "x",
        "--bits",
        "8",
        "--",
        f"{tmp_path}/-x.gguf",
    ]


def test_running_daemon_is_told(child: Callable[..., list[list[str]]], own_home: None) -> None:
    """A daemon that runs looks for models again, so that the new one can be asked for at once."""
    child(DONE)
    with FakeControl(Home.from_environment().socket, {"catalog.rescan": {}}) as fake:
        assert main(["model", "pull", "starter"]) == 0
        assert fake.asked("catalog.rescan") == [{}]


def test_failure_is_the_childs(child: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]) -> None:
    """What the download program says of a failure is shown as any error, with its exit status."""
    error = {"event": "error", "code": "download.disk_full", "msg": "the disk is full", "hint": "free some", "exit": 6}
    child(PROGRESS, error, status=6)

    assert main(["model", "pull", "org/name", "-q", "--revision", "v1"]) == 6
    assert capsys.readouterr() == ("", "error: the disk is full\n  try: free some\n  code: download.disk_full\n")


def test_child_that_dies(child: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]) -> None:
    """A download program that ends without a word is reported with its status."""
    child(PROGRESS, status=9)

    assert main(["model", "pull", "starter", "-q"]) == 1
    assert "the download program ended with status 9" in capsys.readouterr().err


def test_json(child: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` the document says what is there, and whether it was before."""
    child({**DONE, "already": True})

    main(["model", "pull", "starter", "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "schema": "mlxctl/v1",
        "id": "smollm2-135m-instruct",
        "path": "/m/smollm2",
        "already": True,
    }


def test_ctrl_c_ends_the_child(own_home: None, tmp_path: Path) -> None:
    """Ctrl-C reaches the download program as one request to end, is waited for, and exits 130."""
    marker = tmp_path / "ended"
    child = (
        "import json, pathlib, signal, sys\n"
        "print(json.dumps({'event': 'note', 'msg': 'begun'}), flush=True)\n"
        "signal.sigwait({signal.SIGTERM})\n"
        f"pathlib.Path({str(marker)!r}).touch()"
    )
    program = (
        "import signal, subprocess, sys\n"
        "from mlxctl import cli\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"  # inherited, so that sigwait can take it
        "real = subprocess.Popen\n"
        f"subprocess.Popen = lambda command, **more: real([sys.executable, '-c', {child!r}], **more)\n"
        "sys.exit(cli.main(['model', 'pull', 'starter']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as mlxctl:
        assert mlxctl.stderr is not None
        assert mlxctl.stderr.readline() == b"note: begun\n"
        mlxctl.send_signal(signal.SIGINT)
        printed, errors = mlxctl.communicate()

    assert (mlxctl.returncode, printed, errors) == (130, b"", b"")
    assert marker.exists()
