"""A GGUF file of the user's own as a model under `models/`: converted once, there whole or not at all."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from mlxd.download import staging
from mlxd.download.errors import AlreadyThere, CannotConvert, FileNotFound, NotReadable
from mlxd.download.gguf import Plan, convert, plan
from mlxd.download.progress import Pulled, Reporter, counter
from mlxd.download.roots import find_entry, note_if_unsearched
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.paths import Home

# What is a folder's name on every file system, needs no quoting in a shell, and means nothing else as a model id.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HUB_PREFIX = "models--"

_README = """# {name}

Converted from {file} to a folder for MLX: the architecture {architecture}, {dtype}{quantization}.
"""


def import_gguf(file: Path, name: str | None, home: Home, reporter: Reporter, bits: int | None = None) -> Pulled:
    """Convert *file* into `home.models` under *name*.

    Args:
        file: the GGUF file, which is left as it is.
        name: the model's id; None: made of the file's name.
        home: where models lie.
        reporter: gets the progress.
        bits: of the weights: 4, 8, or 16 for floats; None: those of the file where MLX has them.

    Raises:
        DownloadError: in words, with what to do next.
        OSError: a file could not be read or written.
    """
    _require_file(file)
    model_id = check_name(name) if name is not None else name_from(file)
    target = home.models / model_id
    made = _plan(file, bits)
    staging.ensure_folder(home.root, 0o700)
    staging.ensure_folder(home.models)
    staging.sweep(home.models)
    _refuse_taken(home.models, model_id, file)  # before a wait for whoever makes it
    with staging.locked(home.models, model_id, lambda: reporter.note(f"waiting for another import of {model_id}")):
        _refuse_taken(home.models, model_id, file)
        staging.check_space(home.models, made.n_bytes)
        with staging.partial(home.models, model_id) as stage:
            folder = stage / "model"
            folder.mkdir()
            on_bytes = counter("converting", made.weights_bytes, reporter)
            convert(made, folder, functools.partial(staging.open_counted, on_bytes=on_bytes))
            reporter.progress("converting", made.weights_bytes, made.weights_bytes)
            (folder / "README.md").write_text(_describe(made, model_id))
            staging.publish(folder, target)
    _note_problems(home, target, made, reporter)
    return Pulled(model_id, target, already=False)


def check_name(name: str) -> str:
    """Return *name* if it can be a model's id.

    Raises:
        InvalidRequest: it cannot.
    """
    if _NAME.fullmatch(name) is None or name.startswith(_HUB_PREFIX):
        raise InvalidRequest(
            f"{name!r} cannot be the name of a model: it takes letters, digits, '.', '_' and '-', at most 96,"
            " and a letter or digit first",
            hint="--name NAME",
        )
    return name


def name_from(file: Path) -> str:
    """Return the model's id that the file's name stands for: without its suffix, other characters as `-`."""
    stem = file.name[: -len(".gguf")] if file.name.lower().endswith(".gguf") else file.name
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:96]
    return check_name(cleaned)


def _require_file(file: Path) -> None:
    try:
        is_file = file.is_file()
        exists = is_file or file.exists()
    except PermissionError as error:
        raise NotReadable(f"may not read {file}: {error.strerror}", hint="check its owner and mode") from error
    if not exists:
        raise FileNotFound(f"there is no file {file}", hint="mlxctl model import FILE.gguf")
    if not is_file:
        kind = "a folder" if file.is_dir() else "no ordinary file"
        raise CannotConvert(f"{file} is {kind}, and one GGUF file is wanted", hint="mlxctl model import FILE.gguf")


def _plan(file: Path, bits: int | None) -> Plan:
    try:
        return plan(file, bits=bits)
    except PermissionError as error:
        raise NotReadable(f"may not read {file}: {error.strerror}", hint="check its owner and mode") from error


def _refuse_taken(models: Path, model_id: str, file: Path) -> None:
    """Refuse a name that is in use, also where only the case differs: many disks of Macs make no difference."""
    taken = next((entry.name for entry in models.iterdir() if entry.name.lower() == model_id.lower()), None)
    if taken is not None:
        raise AlreadyThere(
            f"there is a model {taken} already: {models / taken}",
            hint=f"mlxctl model import {file} --name OTHER\nmlxctl model remove {taken}",
            data={"path": str(models / taken)},
        )


def _note_problems(home: Home, target: Path, made: Plan, reporter: Reporter) -> None:
    if made.changes:
        reporter.note(f"computed anew: {made.changes}; --bits 4, 8 or 16 makes others")
    entry = find_entry(home.models, target)
    if entry is not None and entry.problem is not None:
        reporter.note(f"{entry.id} cannot be served: {entry.problem}")
    if "chat_template" not in made.tokenizer["tokenizer_config.json"]:
        reporter.note("the file has no chat template: the model serves /v1/completions, and no chats")
    note_if_unsearched(home.models, home, reporter)


def _describe(made: Plan, name: str) -> str:
    quantization = made.config.get("quantization")
    bits = f", quantized to {quantization['bits']} bits" if quantization is not None else ""
    changes = f" (computed anew: {made.changes})" if made.changes else ""
    return _README.format(
        name=name,
        file=made.file.path.name,
        architecture=made.config["model_type"],
        dtype=made.dtype,
        quantization=bits + changes,
    )
