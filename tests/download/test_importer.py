"""`python -m mlxd.download import FILE.gguf`: names, what is there after it, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxd.catalog import Catalog
from mlxd.download.errors import AlreadyThere, CannotConvert, DiskFull, FileNotFound, NotReadable
from mlxd.download.importer import check_name, import_gguf, name_from
from mlxd.download.progress import Pulled
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.paths import Home
from tests.support.recording_reporter import RecordingReporter
from tests.support.tiny_gguf import TinyModel, write_gguf

# Converts as ever, and says so and stops when the weights are being written.
_STOPS = """
import sys, time
import mlx.core as mx
def save(file, arrays, metadata):
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
mx.save_safetensors = save
from mlxd.download.__main__ import main
sys.exit(main(["import", sys.argv[1]]))
"""


@pytest.fixture
def home() -> Home:
    """The home of this test, which does not exist yet."""
    return Home.from_environment()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sound file."""
    path = tmp_path / "Tiny Model.Q8_0.gguf"
    write_gguf(path, None, "Q8_0")
    return path


def run_import(*arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the program; return its status and what it said."""
    command = [sys.executable, "-m", "mlxd.download", "import", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def visible(home: Home) -> list[str]:
    """Return what a catalog lists in the models' folder."""
    catalog = Catalog([home.models])
    catalog.scan()
    return [entry.id for entry in catalog.entries()]


def test_import(home: Home, file: Path) -> None:
    """The model is there under the file's name, servable, and the file is as it was."""
    before = file.read_bytes()
    reporter = RecordingReporter()

    pulled = import_gguf(file, None, home, reporter)

    assert pulled == Pulled("Tiny-Model.Q8_0", home.models / "Tiny-Model.Q8_0", already=False)
    catalog = Catalog([home.models])
    catalog.scan()
    (entry,) = catalog.entries()
    assert (entry.id, entry.problem, entry.quantization) == (pulled.model_id, None, "8-bit group 32")
    assert "Converted from Tiny Model.Q8_0.gguf" in (pulled.path / "README.md").read_text()
    assert file.read_bytes() == before
    done, total = reporter.phases["converting"][-1]
    assert done == total == entry.weights_bytes
    assert [path.name for path in home.models.iterdir() if path.name.endswith(".partial")] == []


@pytest.mark.parametrize(
    ("bits", "note", "quantization"),
    [
        (None, "Q4_K as 4 bits", "4-bit group 32"),
        (8, "Q4_K as 8 bits", "8-bit group 32"),
        (16, "Q4_K as float16", None),
    ],
)
def test_what_is_computed_anew_is_told(
    home: Home, tmp_path: Path, bits: int | None, note: str, quantization: str | None
) -> None:
    """Weights of a type that MLX does not have get its bits or those asked for, and a note and the README say so."""
    write_gguf(tmp_path / "k.gguf", TinyModel(width=256, hidden=256, head_dim=128), "Q4_K")
    reporter = RecordingReporter()
    pulled = import_gguf(tmp_path / "k.gguf", None, home, reporter, bits)
    assert reporter.notes == [f"computed anew: {note}; --bits 4, 8 or 16 makes others"]
    assert f"(computed anew: {note})" in (pulled.path / "README.md").read_text()
    catalog = Catalog([home.models])
    catalog.scan()
    (entry,) = catalog.entries()
    assert (entry.problem, entry.quantization) == (None, quantization)
    assert reporter.phases["converting"][-1] == (entry.weights_bytes, entry.weights_bytes)


def test_name_of_its_own(home: Home, file: Path) -> None:
    """The program takes a name and bits, and says where the model is on its last line."""
    status, events = run_import(str(file), "--name", "other", "--bits", "4")
    assert status == 0
    assert "computed anew: Q8_0 as 4 bits" in events[-2]["msg"]
    assert events[-1] == {"event": "done", "id": "other", "path": str(home.models / "other"), "already": False}


@pytest.mark.parametrize("name", ["", ".hidden", "a b", "a/b", "..", "models--a--b", "x" * 97, "a\n"])
def test_names_that_cannot_be(name: str) -> None:
    """What is no folder's name everywhere, or means something else as an id, is refused."""
    with pytest.raises(InvalidRequest, match="cannot be the name"):
        check_name(name)


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [("a.gguf", "a"), ("A.B.GGUF", "A.B"), ("my model (1).gguf", "my-model-1"), ("no-suffix", "no-suffix")],
)
def test_name_of_the_file(file_name: str, expected: str) -> None:
    """Without a name the file's is taken, as far as it can be one."""
    assert name_from(Path("/x") / file_name) == expected


def test_name_in_use(home: Home, file: Path) -> None:
    """A name that is in use is refused, whatever its case, and the model that has it stays."""
    import_gguf(file, "Taken", home, RecordingReporter())
    before = (home.models / "Taken" / "config.json").stat().st_mtime_ns

    with pytest.raises(AlreadyThere, match="there is a model Taken already") as caught:
        import_gguf(file, "taken", home, RecordingReporter())

    assert caught.value.exit_code == 5
    assert "--name OTHER" in str(caught.value.hint)
    assert (home.models / "Taken" / "config.json").stat().st_mtime_ns == before


def test_files_that_cannot_be_read(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, a folder, a pipe and a file of somebody else's are each told apart."""
    os.mkfifo(tmp_path / "pipe.gguf")
    reporter = RecordingReporter()
    with pytest.raises(FileNotFound, match="there is no file"):
        import_gguf(tmp_path / "none.gguf", None, home, reporter)
    with pytest.raises(CannotConvert, match="is a folder"):
        import_gguf(tmp_path, None, home, reporter)
    with pytest.raises(CannotConvert, match="no ordinary file"):
        import_gguf(tmp_path / "pipe.gguf", None, home, reporter)

    def refuse(path: Path, bits: int | None) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "x.gguf").touch()
    monkeypatch.setattr("mlxd.download.importer.plan", refuse)
    with pytest.raises(NotReadable, match=r"may not read .*Permission denied"):
        import_gguf(tmp_path / "x.gguf", None, home, reporter)
    assert not home.root.exists()


def test_refusal_leaves_nothing(home: Home, file: Path) -> None:
    """A file that cannot be converted leaves no trace, and the last line has the code and the exit status."""
    file.write_bytes(file.read_bytes()[:-1000])
    status, events = run_import(str(file))
    assert (status, events[-1]["event"], events[-1]["code"]) == (10, "error", "download.cannot_convert")
    assert not home.root.exists()


def test_too_little_room(home: Home, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is looked for before anything is written."""
    monkeypatch.setattr("mlxd.download.staging.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(DiskFull, match=r"not enough disk space in .* are needed"):
        import_gguf(file, "x", home, RecordingReporter())
    assert visible(home) == []


def test_what_it_cannot_do_is_noted(home: Home, tmp_path: Path) -> None:
    """A file without a chat template is imported, and it is said what the model does not do."""
    write_gguf(tmp_path / "base.gguf", changes={"tokenizer.chat_template": None})
    home.root.mkdir()
    home.config.write_text('[catalog]\npaths = ["/elsewhere"]\n')
    reporter = RecordingReporter()
    import_gguf(tmp_path / "base.gguf", None, home, reporter)
    no_template, unsearched = reporter.notes
    assert "no chat template" in no_template
    assert f"mlxctl config set catalog.paths /elsewhere,{home.models}" in unsearched


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_end_in_the_middle(home: Home, file: Path, number: signal.Signals, status: int) -> None:
    """Interrupted or killed it leaves nothing that is listed, and the next import sweeps up and succeeds."""
    with subprocess.Popen([sys.executable, "-c", _STOPS, str(file)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        line = next(line for line in child.stdout if "writing" in line or "error" in line)
        assert line == "writing\n"
        child.send_signal(number)
        rest = child.stdout.read()

    assert child.returncode == status
    assert ("nothing half-made is left" in rest) is (number != signal.SIGKILL)
    assert visible(home) == []
    left = list(home.models.glob(".*.partial"))
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    import_gguf(file, None, home, RecordingReporter())
    assert visible(home) == ["Tiny-Model.Q8_0"]
    assert list(home.models.glob(".*.partial")) == []
