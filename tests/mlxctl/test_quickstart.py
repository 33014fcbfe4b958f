"""`mlxctl quickstart`: each step, and the plain reason when one fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxctl import download, process, quickstart
from mlxctl.cli import main
from mlxd.protocol.errors import ControlError
from mlxd.protocol.paths import Home
from tests.mlxctl.test_view import POOL
from tests.support.fake_control import FakeControl
from tests.support.fake_openai import DONE, FakeHTTP, delta, running_openai, sse

STARTER = {"id": "smollm2-135m-instruct", "path": "/m/starter", "already": True}
USAGE = {"prompt_tokens": 36, "completion_tokens": 8}
ANSWER = sse(delta(content="The capital of France is Paris."), delta("stop"), {"choices": [], "usage": USAGE}) + DONE


def status_of(url: str | None, **more: Any) -> dict[str, Any]:
    """Return a status as the daemon sends it."""
    return {
        "version": "0.1.0",
        "pid": 4711,
        "uptime_ms": 1000,
        "gen": 1,
        "config": {"path": "/c", "problem": None},
        "http": {"url": url, "problem": None},
        "pool": {**POOL, "models": []},
        "requests": [],
        "problems": [],
        **more,
    }


@pytest.fixture
def http(own_home: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHTTP]:
    """A daemon that runs, has the starter, and knows the capital of France."""
    monkeypatch.setattr(download, "run", lambda call, arguments: STARTER)
    with running_openai() as fake:
        fake.answer, fake.models = ANSWER, [{"id": STARTER["id"], "state": "unloaded"}]
        answers = {"status": status_of(fake.url), "model.load": {"op": "op-1"}, "op.wait": {"state": "done"}}
        with FakeControl(Home.from_environment().socket, answers, http=fake.url):
            yield fake


def test_answer_status_and_what_next(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer comes first on stdout, then the status, then what to try; the steps are told on stderr."""
    assert main(["quickstart"]) == 0

    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "The capital of France is Paris."
    assert lines[1].startswith("    mlxd 0.1.0, pid 4711")
    assert f"    curl {http.url}/v1/chat/completions -H 'content-type: application/json' \\" in lines
    assert lines[-1].startswith("  stop the daemon: ")
    assert [line[:4] for line in printed.err.splitlines() if line[:1].isdigit()] == [
        "1/5 ",
        "2/5 ",
        "3/5 ",
        "4/5 ",
        "5/5 ",
    ]
    (body,) = http.bodies
    assert (body["temperature"], body["model"]) == (0, STARTER["id"])
    assert body["messages"][-1]["content"] == "What is the capital of France?"


def test_json(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` there is one document with the answer and the status."""
    assert main(["quickstart", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content"] == "The capital of France is Paris."


def test_what_next_can_be_pasted() -> None:
    """The four lines of Python are valid, and the body for curl is JSON."""
    lines = quickstart.format_next("http://127.0.0.1:6593", "tiny", "mlxctl").splitlines()
    start = next(place for place, line in enumerate(lines) if "import OpenAI" in line)
    body = next(line for line in lines if "-d '" in line).split("'")[1]

    compile("\n".join(line.strip() for line in lines[start : start + 4]), "next", "exec")
    assert json.loads(body)["model"] == "tiny"


def test_download_that_fails(
    own_home: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a model nothing else is tried, and the reason is the download's."""

    def fail(call: object, arguments: object) -> dict[str, Any]:
        raise ControlError(
            "the package index cannot be reached", exit_code=1, code="download.no_network", hint="a proxy?"
        )

    monkeypatch.setattr(download, "run", fail)

    assert main(["quickstart", "-q"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: the package index cannot be reached"


def test_daemon_that_does_not_start(
    own_home: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon that ends at once shows the last lines of its log."""
    monkeypatch.setattr(download, "run", lambda call, arguments: STARTER)
    monkeypatch.setattr(
        process, "daemon_command", lambda home, socket: [sys.executable, "-c", "raise SystemExit('no such luck')"]
    )

    assert main(["quickstart", "-q"]) == 1
    error = capsys.readouterr().err
    assert "ended with status 1 before it answered" in error
    assert "  no such luck" in error


def test_port_that_is_taken(
    own_home: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A daemon whose port is taken says which, and how to take another."""
    monkeypatch.setattr(download, "run", lambda call, arguments: STARTER)
    problem = "port 6593 on 127.0.0.1 is taken by another program; free it, or mlxctl config set http.port=N"
    status = status_of(None, http={"url": None, "problem": problem})
    with FakeControl(Home.from_environment().socket, {"status": status}, http=None):
        assert main(["quickstart", "-q"]) == 3
    assert problem in capsys.readouterr().err


def test_daemon_that_looks_elsewhere(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """A running daemon that does not see the starter is reported with the setting at fault."""
    http.models = []

    assert main(["quickstart", "-q"]) == 4
    assert "  try: mlxctl config unset catalog.paths" in capsys.readouterr().err


def test_program_is_named_as_it_can_be_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program on the PATH is called by its name, one in .venv by the way to it, without either by the module."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert quickstart.find_program() == f"{python} -m mlxctl"

    program = python.with_name("mlxctl")
    program.touch(mode=0o755)
    assert quickstart.find_program() == ".venv/bin/mlxctl"

    monkeypatch.setenv("PATH", str(program.parent))
    assert quickstart.find_program() == "mlxctl"
