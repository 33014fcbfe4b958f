"""Completion of command lines: verbs, options, values, live names, in time, and by real shells."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxctl.candidate import CAP_S, complete
from mlxctl.cli import main, make_root
from mlxctl.completion import split_line
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl

MODELS = [
    {"id": "org/big", "state": "ready", "pinned": True, "preload": False, "aliases": ["chat"]},
    {"id": "small", "state": "unloaded", "pinned": False, "preload": True},
]
OPERATIONS = [
    {"op": "op-1", "kind": "model.load", "models": ["a"], "state": "done"},
    {"op": "op-2", "kind": "model.load", "models": ["b"], "state": "running"},
]
CAP_FOR_TESTS_S = 10.0


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon with names of every kind."""
    answers: dict[str, dict[str, Any]] = {
        "model.list": {"models": MODELS},
        "op.list": {"operations": OPERATIONS},
        "audit.list": {"requests": [{"request": "req-0", "model": None, "status": "error"}], "next": None},
        "ps": {"requests": [{"id": "req-1", "model": "org/big", "state": "answering"}]},
        "cloud.rule.list": {"rules": [{"id": "big", "mode": "always", "match": "glob:gpt-*"}]},
        "cloud.provider.list": {"providers": [{"id": "router", "base_url": "https://x/v1"}]},
        "settings.history": {
            "generations": [
                {"gen": 3, "source": "settings.set", "changed": ["pool.memory"], "runtime_only": True},
                {"gen": 2, "source": "file", "changed": [], "runtime_only": False},
            ]
        },
        "settings.list": {"settings": [{"key": 'models."org/big".pin', "help": "Never evicted."}]},
    }
    with FakeControl(Home.from_environment().socket, answers) as control:
        yield control


def names(*words: str) -> list[str] | None:
    """Return what may stand at the end of the line."""
    found = complete(make_root(), words, cap_s=CAP_FOR_TESTS_S)
    return None if found is None else [name for name, _ in found]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sta"], ["status", "start"]),
        (["model", "un"], ["unload", "unpin"]),
        (["cloud", "rule", "e"], ["enable", "explain"]),
        (["--json", "pool", "sh"], ["show"]),
        (["status", "--w"], ["--watch"]),
        (["pool", "set-memory", "1GB", "--d"], ["--dry-run"]),
        (["logs", "--level", "w"], ["warning"]),
        (["logs", "--level=w"], ["--level=warning"]),
        (["pool", "set", "memory=1GB", "polic"], ["policy="]),
        (["pool", "set-policy", ""], ["lru", "lfu"]),
        (["config", "set", "pool.pol"], ["pool.policy"]),
        (["model", "set", "m", "pi"], ["pin="]),
        (["config", "set", "pool.policy", ""], ["lru", "lfu"]),
        (["config", "set", "http.noise_rules_off", "claude-b"], ["claude-billing-line"]),
        (["cache", ""], ["rules"]),
        (["config", "set", "cloud.enabled", ""], ["true", "false"]),
        (["config", "set", "no.such", ""], []),
        (["config", "set", 'a"', ""], []),
        (["events", "model", "o"], ["op"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["nonsense", ""], []),
        (["status", ""], []),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else "",
)
def test_without_a_daemon(own_home: None, words: list[str], expected: list[str]) -> None:
    """Verbs, options, their values, settings and topics are known without a daemon."""
    assert names(*words) == expected


@pytest.mark.parametrize(
    "words",
    [["config", "validate", ""], ["status", "--socket", ""], ["status", "--socket=/t"], ["model", "import", "x"]],
    ids=" ".join,
)
def test_files_are_the_shells(own_home: None, words: list[str]) -> None:
    """Where a file is meant, the shell completes it."""
    assert names(*words) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model", "load", ""], ["org/big", "chat", "small"]),
        (["model", "load", "or"], ["org/big"]),
        (["model", "unload", ""], ["org/big", "chat"]),
        (["model", "unpin", ""], ["org/big", "chat"]),
        (["preload", "remove", ""], ["small"]),
        (["preload", "set", "small", ""], ["org/big", "chat"]),
        (["events", "--model", "sm"], ["small"]),
        (["chat", "org"], ["org/big"]),
        (["chat", "org/big", "o"], []),
        (["op", "show", ""], ["op-1", "op-2"]),
        (["op", "wait", ""], ["op-2"]),
        (["request", "show", ""], ["req-1"]),
        (["audit", "show", ""], ["req-0"]),
        (["audit", "list", "--request", ""], ["req-0"]),
        (["config", "rollback", ""], ["2"]),
        (["config", "diff", ""], ["2"]),
        (["cloud", "rule", "remove", ""], ["big"]),
        (["cloud", "rule", "add", ""], []),
        (["cloud", "provider", "remove", ""], ["router"]),
        (["config", "get", "models."], ['models."org/big".pin']),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value, list) else "",
)
def test_live_names(fake: FakeControl, words: list[str], expected: list[str]) -> None:
    """Names that only the daemon knows, of those that the verb has a use for."""
    assert names(*words) == expected


def test_socket_on_the_line_is_asked(tmp_path: Path, own_home: None) -> None:
    """`--socket` leads completion to the daemon that the command would be sent to."""
    with FakeControl(tmp_path / "s", {"model.list": {"models": MODELS}}):
        assert names("--socket", str(tmp_path / "s"), "model", "load", "sm") == ["small"]
        assert names("model", "load", f"--socket={tmp_path}/s", "sm") == ["small"]


def test_slow_daemon_is_not_waited_for(own_home: None) -> None:
    """A daemon that does not answer in time costs the cap, and the line has no names."""
    release = threading.Event()

    def hang(frame: dict[str, object]) -> dict[str, object]:
        release.wait(30)
        return {"models": MODELS}

    assert CAP_S == 0.15
    with FakeControl(Home.from_environment().socket, {"model.list": hang}):
        assert complete(make_root(), ["model", "load", ""], cap_s=0.01) == []
        release.set()


def test_nothing_is_started(own_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon there are no names, no error, no home: completing starts and makes nothing."""
    assert main(["__complete", "zsh", "model", "load", ""]) == 0
    assert capsys.readouterr() == ("names\n", "")
    assert not Home.from_environment().root.exists()


@pytest.mark.parametrize("arguments", [[], ["bash"], ["bash", "x"]], ids=str)
def test_wrong_calls_are_silent(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What is no question of a script is answered by a status alone: words would land in the prompt."""
    assert main(["__complete", *arguments]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mlxctl ", [""]),
        ("mlxctl model lo", ["model", "lo"]),
        ("mlxctl model load  ", ["model", "load", ""]),
        ('mlxctl config get "models.org', ["config", "get", "models.org"]),
        ("mlxctl status --socket a\\ b", ["status", "--socket", "a b"]),
        ("mlxctl x#y", ["x#y"]),
    ],
)
def test_line_is_split_as_far_as_it_goes(line: str, words: list[str]) -> None:
    """A line is split as the shell does, an open quote and a blank at the end included."""
    assert split_line(line) == words


BASH = """
eval "$({python} -m mlxctl completion bash)"
mlxctl() {{ {python} -m mlxctl "$@"; }}
command() {{ "$@"; }}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_mlxctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("line", "words", "expected"),
    [
        ("mlxctl model unl", "mlxctl model unl", ["unload"]),
        ("mlxctl pool set-policy ", "mlxctl pool set-policy ''", ["lru", "lfu"]),
        ("mlxctl logs --level=w", "mlxctl logs --level = w", ["warning"]),
        ("mlxctl logs --level=", "mlxctl logs --level =", ["debug", "info", "warning", "error"]),
    ],
)
def test_bash(own_home: None, line: str, words: str, expected: list[str]) -> None:
    """Bash gets what replaces its own current word, which it breaks at `=`; without a helper package."""
    script = BASH.format(python=sys.executable, line=line, words=words)
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_parse(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each script names the program and asks it; a shell that is here takes it without a word."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"mlxctl __complete {shell} " in script
    (tmp_path / "script").write_text(script)
    if shutil.which(shell):
        done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_every_argument_is_known() -> None:
    """No verb has an argument whose values nobody thought of: each is completed, a file, or free by its nature."""
    root = make_root()
    free = {
        "VALUE",  # a size, a number, a duration
        "starter|ORG/NAME",  # the hub is not asked
        "[REF]",
        "NAME",
        "ALIAS",
    }
    completed = (
        "MODEL",
        "[MODEL]",
        "OP",
        "REQUEST",
        "APIKEY",
        "ID",
        "[ID]",
        "KEY",
        "[KEY=VALUE]",
        "[TOPIC]",
        "FILE",
        "[FILE]",
        "PATH",
        "GEN",
        "[GEN",
        "PROVIDER/MODEL",
        "[PROVIDER/MODEL]",
        "bash|",
    )
    with root.make_context("mlxctl", ["status"]) as ctx:
        found = {
            param.metavar or ""
            for name in root.list_commands(ctx)
            for command in _leaves(root.get_command(ctx, name))
            for param in command.params
            if param.param_type_name == "argument"
        }
    assert {metavar for metavar in found if not metavar.startswith(completed)} <= free


def _leaves(command: Any) -> list[Any]:
    below = getattr(command, "commands", None)
    return [command] if below is None else [leaf for child in below.values() for leaf in _leaves(child)]
