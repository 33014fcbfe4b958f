"""The program: verbs and nouns, options in every place, typos, errors, exit statuses, start-up time."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup

from mlxctl import cli
from mlxctl.cli import main
from mlxctl.verb import Noun, Options
from mlxd.protocol.errors import Conflict, InsufficientCapacity, InvalidValue, MlxdError, ModelNotFound
from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.paths import Home
from mlxd.protocol.table import rows
from tests.support.fake_control import FakeControl

UNCHANGED = {"gen": 7, "changed": []}


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon that takes every change of settings."""
    with FakeControl(Home.from_environment().socket, {"settings.set": UNCHANGED}) as control:
        yield control


def test_every_verb_exists() -> None:
    """Each verb and noun that the help lists can be loaded, and has a help of its own."""
    root = cli.make_root()
    with root.make_context("mlxctl", ["status"]) as ctx:
        commands = {name: root.get_command(ctx, name) for name in root.list_commands(ctx)}

    assert [name for name, command in commands.items() if command is None or not command.help] == []


@pytest.mark.parametrize(
    "line",
    [
        ["--json", "pool", "set-memory", "24GB"],
        ["pool", "--json", "set-memory", "24GB"],
        ["pool", "set-memory", "--json", "24GB"],
        ["pool", "set-memory", "24GB", "--json"],
    ],
    ids=" ".join,
)
def test_options_stand_anywhere(fake: FakeControl, line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A shared option means the same before the noun, before the verb and after it."""
    assert main(line) == 0

    assert json.loads(capsys.readouterr().out) == {"schema": "mlxctl/v1", **UNCHANGED}
    assert fake.asked("settings.set") == [{"changes": {"pool.memory": "24GB"}}]


def test_options_closer_to_the_verb_win() -> None:
    """What is given after the verb overrides what is given before; what is not given leaves it."""
    outer = Options(json=True, timeout_s=5.0)

    assert outer.merged({"timeout_s": 60.0, "json": False, "if_generation": 0}) == Options(
        json=True, timeout_s=60.0, if_generation=0
    )


def test_socket_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--socket` leads to another daemon than the home's."""
    with FakeControl(tmp_path / "other", {"settings.set": UNCHANGED}) as other:
        assert main(["--socket", str(other.path), "pool", "set-memory", "24GB"]) == 0
        assert len(other.requests) == 1


@pytest.mark.parametrize(
    ("options", "frame"),
    [
        (["--dry-run"], {"dry": True, "p": {"changes": {"pool.memory": "24GB"}}}),
        (["--if-generation", "0"], {"if_gen": 0, "p": {"changes": {"pool.memory": "24GB"}}}),
        (["--force"], {"p": {"changes": {"pool.memory": "24GB"}, "force": True}}),
    ],
    ids=["dry-run", "if-generation", "force"],
)
def test_options_of_a_change(fake: FakeControl, options: list[str], frame: dict[str, object]) -> None:
    """The options of a change reach the daemon."""
    assert main(["pool", "set-memory", "24GB", *options]) == 0
    assert fake.requests == [{"t": "req", "id": 1, "m": "settings.set", **frame}]


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        (["pool", "set-memory", "-5GB"], {"pool.memory": "-5GB"}),
        (["pool", "set-memory", "--json", "-.5GB"], {"pool.memory": "-.5GB"}),
        (["pool", "set-max-models", "-1"], {"pool.max_models": "-1"}),
        (["config", "set", "pool.memory", "-5GB"], {"pool.memory": "-5GB"}),
        (["pool", "set", "memory=-5GB", "keep-alive=1m"], {"pool.memory": "-5GB", "pool.keep_alive": "1m"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_leading_minus_is_a_value(fake: FakeControl, line: list[str], changes: dict[str, str]) -> None:
    """A negative value reaches the daemon, whose message names the bound, and is not taken for an option."""
    assert main(line) == 0
    assert fake.asked("settings.set") == [{"changes": changes}]


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (["statsu"], "mlxctl status"),
        (["pol", "show"], "mlxctl pool"),
        (["pool", "set-memry", "1GB"], "mlxctl pool set-memory"),
        (["cloud", "rule", "ad"], "mlxctl cloud rule add"),
        (["load", "tiny"], "mlxctl model load"),
        (["xyzzy"], "mlxctl --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_typo_names_the_nearest_verb(line: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A verb that does not exist exits 2 and names the nearest, also when only its noun was left out."""
    assert main(line) == 2

    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("error: there is no verb ")
    assert printed[1:] == [f"  try: {hint}", "  code: usage.unknown_verb"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["pool", "set-memory", "1GB", "--dryrun"], "no such option: --dryrun (Possible options: --dry-run)"),
        (["pool", "set-memory"], "missing argument 'VALUE'"),
        (["pool", "show", "--dry-run"], "no such option: --dry-run"),
        (["cloud", "enable", "--force"], "no such option: --force"),
        (["status", "--timeout", "soon"], "'soon' is not a duration"),
        (["status", "--timeout", "0s"], "'0s' is out of bounds; it must be more than 0s"),
        (["pool", "set", "memory", "4GB"], "'memory' is no KEY=VALUE\n  try: mlxctl pool set KEY=VALUE..."),
        (["pool", "set", "memory=1GB", "pool.memory=2GB"], "pool.memory is given twice"),
        (["--json"], "missing command"),
        (["--version"], "\n  try: mlxctl version\n"),
        (["config", "diff", "abc"], "'abc' is not a whole number"),
        (["logs", "--lines", "x"], "'x' is not a whole number"),
        (["model", "pull", "starter", "--dtype", "float16"], "'float16' is not"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use(own_home: None, line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that cannot be understood exits 2, says what is wrong with it, and leads to the help."""
    assert main(line) == 2

    error = capsys.readouterr().err
    assert message in error
    assert "  try: mlxctl" in error
    assert "  code: usage" in error


def test_noun_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A noun without a verb exits 2 and lists its verbs."""
    assert main(["pool"]) == 2
    assert "set-memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidValue("-5GB is out of bounds; the smallest memory limit is 1MB", param="pool.memory"), 10),
        (InsufficientCapacity("below the pinned models", hint="mlxctl model unpin a"), 6),
        (Conflict("generation 8 is not 7"), 5),
        (ModelNotFound("there is no model 'a'"), 4),
        (MlxdError("the daemon failed"), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, MlxdError) else "",
)
def test_refusal(fake: FakeControl, error: MlxdError, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal exits as its class says; as text it goes to stderr, with `--json` also to stdout as the document."""
    fake.answers["settings.set"] = error

    assert main(["pool", "set-memory", "-5GB"]) == status
    plain = capsys.readouterr()
    assert main(["pool", "set-memory", "-5GB", "--json"]) == status
    as_json = capsys.readouterr()

    assert plain.out == ""
    assert plain.err == as_json.err
    assert plain.err.splitlines()[0] == f"error: {error.message}"
    document = json.loads(as_json.out)
    assert (document["schema"], document["error"]["code"], document["error"]["exit"]) == (
        "mlxctl/v1",
        error.code,
        status,
    )


def test_refused_value_leads_to_the_help(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that is refused without a next command leads to the help of the verb, where the bounds are."""
    fake.answers["settings.set"] = InvalidValue("pool.memory: 500% is out of bounds", param="pool.memory")

    assert main(["pool", "set-memory", "500%"]) == 10
    assert "  try: mlxctl pool set-memory --help\n" in capsys.readouterr().err


def test_no_daemon(own_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon every verb that needs one exits 3, names the socket, and says how to start one."""
    assert main(["status"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        f"error: no daemon is running: there is no socket at {Home.from_environment().socket}",
        "  try: mlxctl start",
        "  code: control.not_running",
    ]


def test_version_skew_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon of another version is steered all the same, with a note that names both; `-q` leaves it out."""
    with FakeControl(tmp_path / "s", {"settings.set": UNCHANGED}, version="0.0.9") as other:
        main(["pool", "set-memory", "1GB", "--socket", str(other.path)])
        noted = capsys.readouterr().err
        main(["pool", "set-memory", "1GB", "--socket", str(other.path), "-q"])

    assert noted == "note: 0.1.0 installed, 0.0.9 running: mlxctl restart\n"
    assert capsys.readouterr().err == ""


def test_set_verbs_are_those_of_the_table() -> None:
    """Each setting with a verb has its `pool set-*`, whose help has the bounds, and there is no other."""
    expected = {f"set-{path[-1].replace('_', '-')}": row for path, row in rows() if row.verb}
    root = cli.make_root()
    with root.make_context("mlxctl", ["pool", "show"]) as ctx:
        pool = root.get_command(ctx, "pool")
    assert isinstance(pool, Noun)

    assert {name for name in pool.commands if name.startswith("set-")} == set(expected)
    assert all(row.kind.accepted in str(pool.commands[name].help) for name, row in expected.items())


def test_operations_are_reached() -> None:
    """Every operation of the control table has its verb, but for those that other verbs use."""
    text = "".join(path.read_text() for path in Path(cli.__file__).parent.glob("*.py"))

    def is_verb(words: list[str]) -> bool:
        command: object = cli.make_root()
        for word in words:
            if not isinstance(command, TyperGroup):
                return False
            with command.make_context("mlxctl", ["x"], resilient_parsing=True) as ctx:
                command = command.get_command(ctx, word)
        return command is not None

    unwritten = [row for row in OPERATIONS.values() if f'"{row.name}"' not in text]
    assert [row.name for row in unwritten if not is_verb((row.verb or row.name).split("."))] == ["ping"]


def test_broken_pipe_is_silent(own_home: None) -> None:
    """A reader that has seen enough ends mlxctl without a word."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with FakeControl(Home.from_environment().socket, {"settings.list": {"settings": []}}):
        done = subprocess.run(
            [sys.executable, "-m", "mlxctl", "config", "list"], stdout=write_end, stderr=subprocess.PIPE, check=False
        )
    os.close(write_end)

    assert (done.returncode, done.stderr) == (0, b"")


def test_closed_output_is_no_crash(own_home: None) -> None:
    """A shell that closes stdout and stderr loses the words and gets the exit status."""
    command = f"{shlex.quote(sys.executable)} -m mlxctl version"

    assert subprocess.run(["sh", "-c", f"{command} >&-"], stderr=subprocess.PIPE, check=True).stderr == b""
    assert subprocess.run(["sh", "-c", f"{command} >&- 2>&-"], check=False).returncode == 0


def test_foreign_os_errors_have_no_number(
    own_home: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the system refuses is said as path and reason."""

    def refuse(self: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/there")

    monkeypatch.setattr(Path, "expanduser", refuse)
    assert main(["status", "--socket", "~/s"]) == 1
    assert capsys.readouterr().err == "error: /there: Permission denied\n  code: os_error\n"


def test_status_is_thin(own_home: None, tmp_path: Path) -> None:
    """`mlxctl status` takes at most eight times the CPU time of a bare interpreter; medians, in turns, compiled."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    commands = {"bare": ["-c", "pass"], "status": ["-m", "mlxctl", "status"]}
    took_s: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(12):
        for name, arguments in commands.items():
            before_s = children_s()
            subprocess.run([sys.executable, *arguments], env=environment, stderr=subprocess.DEVNULL, check=False)
            took_s[name].append(children_s() - before_s)
    bare_s, status_s = (statistics.median(took_s[name]) for name in commands)

    print(f"mlxctl status {status_s * 1000:.0f} ms, bare {bare_s * 1000:.0f} ms: {status_s / bare_s:.1f} times")
    assert status_s <= 8 * bare_s


def children_s() -> float:
    """Return the CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_hints_name_commands_that_exist() -> None:
    """Every command that an error of either program tells people to try is one of this program."""
    hints = [
        line
        for package in ("mlxd", "mlxctl")
        for path in (Path(cli.__file__).parent.parent / package).rglob("*.py")
        for line in re.findall(r"hint=.*", path.read_text())
    ]
    named = {found for line in hints for found in re.findall(r"mlxctl ((?!than)[a-z][a-z-]*(?: [a-z][a-z-]*)*)", line)}

    assert len(named) > 10
    assert {command for command in named if not exists(command.split())} == set()


def exists(words: list[str]) -> bool:
    """Tell whether the words begin with a verb of the program, its noun before it."""
    root = cli.make_root()
    with root.make_context("mlxctl", ["status"]) as ctx:
        found = root.get_command(ctx, words[0])
        for word in words[1:]:
            found = found.get_command(ctx, word) if isinstance(found, Noun) else found
    return found is not None


@pytest.mark.parametrize("noun", [None, *cli._NOUNS])
def test_lists_of_verbs_are_whole(
    noun: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On 80 columns no verb's sentence is cut off in a list: it ends at a break of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"] if noun is None else [noun, "--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("Let a model go.", "Let a model go"),
        ("How long an idle model stays loaded; 0s unloads at once.", "How long an idle model stays loaded"),
        ("Stop the daemon, and wait until nothing of it is there.", "Stop the daemon"),
        ("A sentence that is long and has no place to be broken at", "A sentence that is long and has no..."),
        ("First.\n\nSecond.", "First"),
    ],
)
def test_short_help(sentence: str, shown: str) -> None:
    """A sentence that is too long for a list gives up what comes after its last break, or is cut between words."""
    assert Noun(name="x", help=sentence).get_short_help_str(40) == shown
