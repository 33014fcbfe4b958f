"""One exact wheel from the package index, by pip: fetched, checked against its SHA-256, kept in a cache folder.

pip runs as a child, so that the user's index, proxy and certificates count as they do everywhere else.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxd.download import staging
from mlxd.download.errors import ChecksumMismatch, DiskFull, DownloadError, NoNetwork, PipMissing
from mlxd.download.progress import Reporter

_POLL_S = 0.2
# What pip and urllib3 write when the index was not reached; "No matching distribution" comes after each of them.
_NETWORK_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "SSLError",
    "ProtocolError",
    "RemoteDisconnected",
    "Connection aborted",
    "Max retries exceeded",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Network is unreachable",
)


@dataclass(frozen=True, slots=True)
class Wheel:
    """What to fetch, to the byte."""

    requirement: str
    file_name: str
    sha256: str
    size_bytes: int


def fetch(wheel: Wheel, folder: Path, reporter: Reporter, pip: Sequence[str]) -> Path:
    """Return the path of the checked wheel in *folder*; *pip* is the command that runs pip.

    Raises:
        DownloadError: one of its kinds says what to do.
        OSError: the folder could not be written.
    """
    target = folder / wheel.file_name
    staging.ensure_folder(folder)
    with staging.locked(
        folder, wheel.file_name, lambda: reporter.note("waiting for another download of the same wheel")
    ):
        if target.exists() and _sha256(target, reporter) == wheel.sha256:
            return target
        staging.check_space(folder, 2 * wheel.size_bytes)  # pip copies its temporary file
        with staging.partial(folder, wheel.file_name) as stage:
            _run_pip(wheel, stage, reporter, pip)
            fetched = stage / wheel.file_name
            if not fetched.exists():
                raise DownloadError(f"pip ended well but did not leave {wheel.file_name}")
            found = _sha256(fetched, reporter)
            if found != wheel.sha256:
                raise ChecksumMismatch(
                    f"{wheel.file_name} has the wrong SHA-256: {found}, not {wheel.sha256}; it was thrown away",
                    hint="repeat the command; if it stays so, the package index or a proxy serves something else "
                    "(pip config list shows which index is used)",
                )
            staging.publish(fetched, target)
    return target


def _sha256(path: Path, reporter: Reporter) -> str:
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            reporter.progress("checking", file.tell(), total)
    return digest.hexdigest()


def _run_pip(wheel: Wheel, stage: Path, reporter: Reporter, pip: Sequence[str]) -> None:
    """Let pip download into *stage*, and report what it has on disk meanwhile."""
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    arguments += ["--progress-bar=off", "--retries=2", f"--dest={stage}", wheel.requirement]
    temporary = stage / "tmp"
    temporary.mkdir()
    try:
        child = subprocess.Popen(
            [*pip, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(temporary)},  # so that what is fetched can be seen growing
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise PipMissing(f"pip cannot be started: {error}", hint=_ENSURE_PIP) from error
    with child:
        try:
            output = _wait(child, stage, wheel.size_bytes, reporter)
        except BaseException:
            child.terminate()
            raise
    if child.returncode != 0:
        raise _pip_error(wheel, output, child.returncode)


def _wait(child: subprocess.Popen[str], stage: Path, size_bytes: int, reporter: Reporter) -> str:
    while True:
        reporter.progress("downloading", min(_largest_bytes(stage), size_bytes), size_bytes)
        try:
            output, _ = child.communicate(timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            continue
        return output


def _largest_bytes(folder: Path) -> int:
    """Return the size of the biggest file: the wheel, wherever pip has it just now."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, Path(parent, name).stat().st_size)
            except FileNotFoundError:
                continue  # pip moved it meanwhile
    return largest


_ENSURE_PIP = "python3 -m ensurepip, with the Python that runs mlxctl; or pip install pip"


def _pip_error(wheel: Wheel, output: str, status: int) -> DownloadError:
    """Return the error for pip's *output*, which is kept in `data`."""
    data = {"output": output[-4000:]}
    if "No module named pip" in output:
        return PipMissing("this Python has no pip, which fetches the starter model", hint=_ENSURE_PIP, data=data)
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return DiskFull("the disk is full: pip could not write the wheel", hint="free some space and repeat", data=data)
    if any(sign in output for sign in _NETWORK_SIGNS):
        return NoNetwork(
            f"the package index cannot be reached, so {wheel.requirement} was not fetched",
            hint="check the connection and the proxy (HTTPS_PROXY), then repeat the command",
            data=data,
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or [f"exit status {status}"])[-1].removeprefix("ERROR:").strip()
    return DownloadError(
        f"pip could not fetch {wheel.requirement}: {reason}",
        hint="pip config list shows which package index is used",
        data=data,
    )
