"""mlxctl as a program against mlxd as a program: one daemon with tiny models, steered as people do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxctl.cli import main
from tests.support.adapter import write_adapter
from tests.support.tiny_model import write_tiny_model

CONFIG = """\
# mine
[http]
port = 0

[catalog]
paths = ["models"]
"""


class Program:
    """mlxctl with a home: most commands run in this process, which takes a tenth of the time."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "MLXD_HOME": str(home)}

    def spawn(self, *words: str, status: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run one command as a process to its end, which must have this exit status."""
        command = [sys.executable, "-m", "mlxctl", *words]
        done = subprocess.run(
            command, env=self.environment, input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == status, f"{words} → {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def run(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one command in this process; it must have this exit status."""
        out, errors = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLXD_HOME", str(self.home))
            patch.setattr("sys.stdin", io.StringIO())
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
                returned = main(words)
        done = subprocess.CompletedProcess(words, returned, out.getvalue(), errors.getvalue())
        assert returned == status, f"{words} → {returned}\n{done.stdout}{done.stderr}"
        return done

    def ask(self, *words: str) -> dict[str, Any]:
        """Run one command with `--json` and return its document."""
        document: dict[str, Any] = json.loads(self.run(*words, "--json").stdout)
        assert document.pop("schema") == "mlxctl/v1"
        return document


@pytest.fixture(scope="module", name="mlxctl")
def _mlxctl(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Start a daemon with the models `a` and `b` by mlxctl, and stop it by mlxctl."""
    home = tmp_path_factory.mktemp("cli")
    for seed, name in enumerate(("a", "org/b")):
        write_tiny_model(home / "models" / name, seed=seed)
    (home / "config.toml").write_text(CONFIG)
    program = Program(home)
    program.spawn("start")
    yield program
    program.spawn("stop")
    assert not (home / "mlxd.sock").exists()


def test_start_again_changes_nothing(mlxctl: Program) -> None:
    """A start beside a running daemon says so, with the pid that status shows."""
    started = mlxctl.ask("start")
    assert (started["result"], started["pid"]) == ("already running", mlxctl.ask("status")["pid"])


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["ps"],
        ["pool", "show"],
        ["model", "list"],
        ["model", "show", "org/b"],
        ["preload", "list"],
        ["cloud", "show"],
        ["cloud", "provider", "list"],
        ["cloud", "rule", "list"],
        ["cloud", "rule", "explain", "a"],
        ["config", "list"],
        ["config", "get", "pool.memory"],
        ["config", "path"],
        ["config", "validate"],
        ["version"],
    ],
    ids=" ".join,
)
def test_questions(mlxctl: Program, words: list[str]) -> None:
    """Every question is answered in text, without a word on stderr, and as one document."""
    done = mlxctl.run(*words)

    assert done.stdout.strip()
    assert done.stderr == ""
    assert mlxctl.ask(*words)


def test_chat_streams_from_a_loaded_model(mlxctl: Program) -> None:
    """A model is loaded, seen as loaded, asked with a prompt from the line and from stdin, and unloaded."""
    mlxctl.run("model", "load", "a", "--wait")
    assert {model["id"]: model["state"] for model in mlxctl.ask("model", "list")["models"]}["a"] == "ready"

    asked = mlxctl.spawn("chat", "a", "Hello you", "--temperature", "0", "--max-tokens", "5")
    piped = mlxctl.spawn("chat", "a", "--temperature", "0", "--max-tokens", "5", stdin="Hello you")
    assert asked.stdout == piped.stdout != ""
    assert ", 5 tokens, length; first after " in asked.stderr
    document = mlxctl.ask("chat", "a", "Hello you", "--temperature", "0", "--max-tokens", "5")
    assert document["content"] + "\n" == asked.stdout
    assert document["usage"]["completion_tokens"] == 5

    mlxctl.run("model", "unload", "a", "--wait")
    assert {model["id"]: model["state"] for model in mlxctl.ask("model", "list")["models"]}["a"] == "unloaded"


def test_unknown_model_in_chat(mlxctl: Program) -> None:
    """A name that nothing answers to exits 4 with the server's words."""
    failed = mlxctl.run("chat", "nope", "Hello", status=4)
    assert "  code: model_not_found" in failed.stderr


def test_a_change_is_live_and_saved(mlxctl: Program) -> None:
    """A change is in the pool and in the file, whose comments stay; a dry run and a repeat change nothing."""
    config = mlxctl.home / "config.toml"
    dry = mlxctl.run("pool", "set-memory", "2GB", "--dry-run")
    assert "dry run: nothing was changed" in dry.stdout
    assert config.read_text() == CONFIG

    changed = mlxctl.ask("pool", "set-memory", "2GB")
    assert [(change["key"], change["new"]) for change in changed["changed"]] == [("pool.memory", "2GB")]
    assert mlxctl.ask("pool", "show")["memory"]["limit_bytes"] == 2 * 10**9
    assert config.read_text().startswith("# mine\n")
    assert 'memory = "2GB"' in config.read_text()

    again = mlxctl.ask("pool", "set-memory", "2GB")
    assert (again["changed"], again["gen"]) == ([], changed["gen"])
    assert mlxctl.run("config", "get", "pool.memory").stdout == "2GB = 2.0 GB (1.9 GiB)\n"
    mlxctl.run("config", "unset", "pool.memory")
    assert mlxctl.ask("config", "get", "pool.memory")["origin"] == "default"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["pool", "set-memory", "-5GB"], 10, "-5GB is out of bounds; the smallest memory limit is 1MB"),
        (["pool", "set-memory", "500%"], 10, "from 1% to 100%"),
        (["pool", "set", "memory=1GB", "max_models=0"], 10, "from 1 to 1000"),
        (["config", "set", "pool.memry", "1GB"], 10, "the nearest is 'pool.memory'"),
        (["pool", "set-memory", "1GB", "--if-generation", "0"], 5, "generation"),
        (["model", "load", "aa"], 4, "aa"),
        (["preload", "add", "nope"], 4, "nope"),
        (["cloud", "provider", "remove", "nope"], 4, "nope"),
        (["model", "remove", "a"], 2, "Nobody is there to answer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(mlxctl: Program, words: list[str], status: int, says: str) -> None:
    """What is refused exits as its class says, with the bound or the reason and the next command; the file stays."""
    before = (mlxctl.home / "config.toml").read_bytes()

    failed = mlxctl.run(*words, status=status)

    assert says in failed.stderr
    assert "  try: " in failed.stderr
    assert (mlxctl.home / "config.toml").read_bytes() == before


def test_preload_and_pins(mlxctl: Program) -> None:
    """The list keeps its order and its places, a pin is shown, and both are undone."""
    mlxctl.run("preload", "set", "a", "--wait")
    mlxctl.run("preload", "add", "org/b", "--at", "0", "--wait")
    assert [(model["id"], model["state"]) for model in mlxctl.ask("preload", "list")["preload"]] == [
        ("org/b", "loaded"),
        ("a", "loaded"),
    ]
    mlxctl.run("model", "pin", "org/b")
    assert mlxctl.ask("model", "show", "org/b")["pinned"]

    mlxctl.run("model", "unpin", "org/b")
    mlxctl.run("preload", "remove", "a", "--unload", "--wait")
    mlxctl.run("preload", "set")
    assert mlxctl.ask("preload", "list")["preload"] == []


def test_cloud_rules(mlxctl: Program) -> None:
    """A provider and a rule are added, explained, listed and removed; a provider in use is not removed."""
    mlxctl.run("cloud", "provider", "add", "far", "--base-url", "http://127.0.0.1:9/v1", "--auth-env", "FAR_KEY")
    mlxctl.run("cloud", "rule", "add", "big", "--match", "glob:gpt-*", "--to", "far/vendor/gpt")
    assert mlxctl.ask("cloud", "rule", "explain", "gpt-9")["rule"] == "big"
    mlxctl.run("cloud", "enable")
    assert mlxctl.ask("cloud", "rule", "explain", "gpt-9")["target"] == "far/vendor/gpt"
    mlxctl.run("cloud", "disable")
    assert "far/vendor/gpt" in mlxctl.run("cloud", "rule", "list").stdout
    assert "big" in mlxctl.run("cloud", "provider", "remove", "far", status=5).stderr

    mlxctl.run("cloud", "rule", "remove", "big")
    mlxctl.run("cloud", "provider", "remove", "far")
    shown = mlxctl.ask("cloud", "show")
    assert (shown["enabled"], shown["providers"], shown["rules"]) == (False, [], [])


def test_remove_deletes_a_model(mlxctl: Program) -> None:
    """A model that is removed is gone from the disk and from the list at once."""
    write_tiny_model(mlxctl.home / "models" / "c", seed=3)
    mlxctl.run("config", "set", "catalog.paths=models,more")  # another list is searched at once
    mlxctl.run("config", "set", "catalog.paths=models")
    removed = mlxctl.run("model", "remove", "c", "--yes")

    assert removed.stdout.startswith("removed c: ")
    assert not (mlxctl.home / "models" / "c").exists()
    assert "c" not in {model["id"] for model in mlxctl.ask("model", "list")["models"]}


def test_validate_another_file(mlxctl: Program, tmp_path: Path) -> None:
    """Another file is checked without being used, and its error has its line."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[pool]\nmemory = "1GB"\n')
    bad.write_text('[pool]\nmemory = "500%"\n')

    assert mlxctl.run("config", "validate", str(good)).stdout == f"{good} is valid\n"
    assert mlxctl.run("config", "validate", str(bad), status=10).stderr.splitlines() == [
        f"error: {bad}:2:1: pool.memory: 500% is out of bounds; a percentage of usable memory must be from 1% to 100%",
        "  try: fix the file, then try again",
        "  code: config.file_invalid",
    ]
    missing = mlxctl.run("config", "validate", str(tmp_path / "none"), status=4).stderr
    assert missing.startswith(f"error: {tmp_path}/none cannot be read: No such file or directory\n")


def test_ctrl_c_in_chat_frees_the_model(mlxctl: Program) -> None:
    """Ctrl-C in the middle of an answer exits 130 and leaves no running request."""
    command = [sys.executable, "-m", "mlxctl", "chat", "a", "Tell me a long story", "--max-tokens", "400"]
    with subprocess.Popen(command, env=mlxctl.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as chat:
        assert chat.stdout is not None
        assert chat.stdout.read(1)
        chat.send_signal(signal.SIGINT)
        _, errors = chat.communicate()

    assert (chat.returncode, errors) == (130, b"")
    while mlxctl.ask("ps")["requests"]:
        pass


def test_restart_keeps_settings(mlxctl: Program) -> None:
    """A restart is another process with the same settings."""
    mlxctl.run("pool", "set-keep-alive", "17m")
    before = mlxctl.ask("status")["pid"]

    mlxctl.spawn("restart")
    assert mlxctl.ask("status")["pid"] != before
    assert mlxctl.run("config", "get", "pool.keep_alive").stdout == "17m\n"


def test_names_settings_and_adapters_of_a_model(mlxctl: Program) -> None:
    """An alias answers in chat with the model's defaults; a context takes effect by a reload; an adapter is a model."""
    mlxctl.run("model", "alias", "add", "a", "gpt-4o")
    mlxctl.run("model", "set", "gpt-4o", "max-tokens=4", "temperature=0")
    asked = mlxctl.ask("chat", "gpt-4o", "Hello")
    assert (asked["model"], asked["usage"]["completion_tokens"]) == ("gpt-4o", 4)

    mlxctl.run("model", "set", "a", "context_length=300", "--wait")
    models = {model["id"]: model for model in mlxctl.ask("ps")["models"]}
    assert (models["a"]["context_length"], models["a"]["stale"]) == (300, None)

    write_adapter(mlxctl.home / "models" / "style", "a", seed=7)
    assert "added a+style" in mlxctl.run("model", "rescan").stdout
    adapted = mlxctl.ask("chat", "a+style", "Hello", "--max-tokens", "4", "--temperature", "0")
    assert adapted["content"] != asked["content"]
    assert "kept by a+style" in mlxctl.run("ps").stdout
    mlxctl.run("model", "unload", "a", "--wait")
    shown = mlxctl.run("model", "set", "a", "context_length=9999", status=10)
    assert "9999 is more than the model's own context of 2048 tokens" in shown.stderr


def test_taken_port_is_named(tmp_path: Path, clean_environment: None) -> None:
    """A daemon whose port is taken comes up, and start says which port and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (tmp_path / "config.toml").write_text(f"[http]\nport = {port}\n[catalog]\npaths = []\n")
        program = Program(tmp_path)
        started = program.spawn("start")
        try:
            assert f"port {port}" in started.stderr
            assert "  try: mlxctl config set http.port N" in program.run("chat", "Hello", status=3).stderr
        finally:
            program.spawn("stop")


def test_invalid_file_is_named(tmp_path: Path, clean_environment: None) -> None:
    """A daemon with a broken file comes up, and start names the line."""
    (tmp_path / "config.toml").write_text("[http]\nport = 0\n[pool]\nmemory = oops\n")
    program = Program(tmp_path)
    started = program.spawn("start")
    try:
        assert "config.toml:4" in started.stderr
        assert "config.toml:4" in program.run("status").stdout
        if program.ask("status")["http"]["url"] is not None:  # another program may have the default port
            assert "config.toml:4" in program.run("chat", "Hello", status=10).stderr
        assert " error   config.toml:4" in (tmp_path / "logs" / "mlxd.log").read_text()
    finally:
        program.spawn("stop")
