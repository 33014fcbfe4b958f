"""Models of the hub, fetched by the real program from a server on a real socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxd.protocol.errors import EXIT_INTERRUPTED, EXIT_OTHER
from tests.support.fake_hub import COMMIT, FakeHub, models
from tests.support.model_folder import LLAMA_CONFIG, write_safetensors

CONFIG = json.dumps(dict(LLAMA_CONFIG)).encode()
NAME = "org/tiny"
MB = 10**6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a file of weights that is big enough to be gone on with."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_safetensors(path, {"model.embed_tokens.weight": ("F32", (100_000, 64)), "model.norm.weight": ("F32", (64,))})
    return path.read_bytes()


@pytest.fixture
def hub(weights: bytes) -> Iterator[FakeHub]:
    """Return a running hub."""
    with FakeHub(models(weights, CONFIG)) as hub:
        yield hub


class Program:
    """Starts the program with a cache of its own."""

    def __init__(self, hub: FakeHub, folder: Path) -> None:
        self.cache = folder / "hf" / "hub"
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "MLXD_HOME": str(folder / "home"),
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start it; its progress comes on stdout."""
        command = [sys.executable, "-m", "mlxd.download", "pull", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**self.environment, **environment})

    def run(self, *arguments: str, **environment: str) -> tuple[int, list[dict[str, Any]]]:
        """Run it to its end; return its status and its events."""
        with self.start(*arguments, **environment) as child:
            output, _ = child.communicate()
        return child.returncode, [json.loads(line) for line in output.splitlines()]

    def refuse(self, status: int, *arguments: str, **environment: str) -> dict[str, Any]:
        """Run it to an error of this exit status; return the error."""
        returned, events = self.run(*arguments, **environment)
        assert (returned, events[-1]["event"], events[-1]["exit"]) == (status, "error", status), events
        return events[-1]


@pytest.fixture
def program(hub: FakeHub, tmp_path: Path) -> Program:
    """Return the program, set to the hub."""
    return Program(hub, tmp_path)


def test_pull(program: Program, hub: FakeHub, weights: bytes, tmp_path: Path) -> None:
    """The model lands in the cache, without code; a repeat fetches nothing; a note tells when mlxd looks elsewhere."""
    status, events = program.run(NAME)
    snapshot = program.cache / "models--org--tiny" / "snapshots" / COMMIT
    assert status == 0
    assert events[-1] == {"event": "done", "id": NAME, "path": str(snapshot), "already": False}
    assert sorted(path.name for path in snapshot.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (snapshot / "model.safetensors").read_bytes() == weights
    total = len(weights) + len(CONFIG) + 2
    progress = [(event["done"], event["total"]) for event in events if event["event"] == "progress"]
    assert progress[0] == (0, total)
    assert progress[-1] == (total, total)
    assert progress == sorted(progress)
    assert not list(program.cache.rglob("*.incomplete"))
    (note,) = [event["msg"] for event in events if event["event"] == "note"]
    assert f"mlxctl config set catalog.paths {tmp_path / 'home' / 'models'}," in note
    assert note.endswith(f",{program.cache}")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(f'[catalog]\npaths = ["models", "{program.cache}"]\n')
    transfers = len(hub.ranges())
    status, events = program.run(NAME)
    assert [event["event"] for event in events] == ["progress", "done"]
    assert events[-1]["already"] is True
    assert len(hub.ranges()) == transfers


def test_kill_and_go_on(program: Program, hub: FakeHub, weights: bytes) -> None:
    """After a kill nothing is listed as whole, and the next pull goes on with what is there."""
    hub.holds_after_bytes = 21 * MB
    with program.start(NAME) as child:
        assert child.stdout is not None
        assert any(json.loads(line).get("done", 0) >= 20 * MB for line in child.stdout)
        child.kill()
    assert not list(program.cache.rglob("snapshots/*/model.safetensors"))
    (partial,) = program.cache.rglob("*.mlxd.incomplete")
    had = partial.stat().st_size
    assert had >= 10 * MB
    hub.holds_after_bytes = None
    status, events = program.run(NAME)
    assert status == 0
    assert hub.ranges() == [None, f"bytes={had}-"]
    assert (Path(events[-1]["path"]) / "model.safetensors").read_bytes() == weights
    assert events[0]["done"] == 0
    assert [event["done"] for event in events if event["event"] == "progress"][1] >= had


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(program: Program, hub: FakeHub, sent: signal.Signals) -> None:
    """A signal ends the program at once, though a transfer stands still, and keeps what came."""
    hub.holds_after_bytes = 21 * MB
    with program.start(NAME) as child:
        assert child.stdout is not None
        assert any(json.loads(line).get("done", 0) >= 10 * MB for line in child.stdout)
        child.send_signal(sent)
        last = child.stdout.read().splitlines()[-1]
    assert child.returncode == EXIT_INTERRUPTED
    assert json.loads(last)["code"] == "download.interrupted"
    assert list(program.cache.rglob("*.mlxd.incomplete"))


def test_offline_by_wish(program: Program) -> None:
    """HF_HUB_OFFLINE is named as the reason."""
    error = program.refuse(EXIT_OTHER, NAME, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in error["msg"]


def test_no_network(program: Program) -> None:
    """A hub that cannot be reached is named with its address."""
    error = program.refuse(EXIT_OTHER, NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert error["code"] == "download.no_network"
    assert "http://127.0.0.1:9 cannot be reached" in error["msg"]


def test_unusable_proxy(program: Program) -> None:
    """A proxy that does not answer is a network problem."""
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "", "no_proxy": ""}
    assert program.refuse(EXIT_OTHER, NAME, **proxy)["code"] == "download.no_network"
