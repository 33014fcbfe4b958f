"""The files of a model's folder, which anybody may have written: only regular ones are read, of a bounded size.

A link to a device never ends, a pipe never answers, and JSON of any size takes twenty times that in memory. What is
read here is checked on the open descriptor; `check_folder` looks at everything that a library is going to open.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mlxd.protocol.units import show_bytes

CONFIG_FILE = "config.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapters.safetensors"
# What a load reads: weights, configurations, chat templates and every kind of vocabulary that transformers knows.
LOADED_SUFFIXES = frozenset(
    {".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".codes", ".spm", ".tokenizer", ".bpe"}
)
# What mlx-lm takes for weights.
WEIGHTS = "model*.safetensors"
# Files of one number per setting. The longest known, with a quantization of its own per layer, has half of one MB.
MOST_CONFIG_BYTES = 4 << 20
# Twice the longest vocabulary and the longest index of shards that are known.
MOST_FILE_BYTES = 64 << 20

_SMALL_FILES = frozenset({CONFIG_FILE, ADAPTER_CONFIG_FILE, "generation_config.json", "modules.json"})
# Folders in it that are read, too.
_READ_FOLDERS = ("1_Pooling", "additional_chat_templates")
_WEIGHTS_SUFFIX = ".safetensors"
# Of a whole number in a configuration; transformers writes 10^30 for "unknown".
_MOST_DIGITS = 40
_UNREADABLE = re.compile(r"[^\x20-\x7e]")
_MOST_SHOWN = 80


# Tells a model from a changed one: path, size and time of the last change of the files that a load reads.
Signature = tuple[tuple[str, int, int], ...]


class BadFile(ValueError):
    """A file of a model's folder cannot be used; the message names it and says why."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it; whatever else it is, nothing waits for it.

    Raises:
        BadFile: it is a folder, a device, a pipe or a socket.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadFile(f"{path.name} is no regular file")
    return os.fdopen(descriptor, "rb")


def read_object(path: Path, most_bytes: int = MOST_CONFIG_BYTES) -> dict[str, Any]:
    """Return the JSON object in the file. Its whole numbers have at most 40 digits.

    Raises:
        BadFile: it is no regular file, too long, or holds something else.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise BadFile(_too_long(path.name, max(path.stat().st_size, len(raw)), most_bytes))
    try:
        value = json.loads(raw, parse_int=_bounded)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadFile(f"{path.name} does not hold a JSON object")
    return value


def check_folder(folder: Path) -> None:
    """Look at all files that a library may open to load the model: nothing else keeps it from reading forever.

    Raises:
        BadFile: the first that is no regular file, or too long.
        OSError: the folder cannot be read.
    """
    for entry in _loaded_files(folder):
        try:
            found = entry.stat()
        except FileNotFoundError:
            continue  # a link to nothing: as good as absent
        if (problem := file_problem(entry.name, found)) is not None:
            raise BadFile(problem)


def read_signature(folder: Path) -> Signature:
    """Return the signature of a folder; of one that is not there it is empty."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in _loaded_files(folder):
            with contextlib.suppress(FileNotFoundError):
                file = entry.stat()
                found.append((entry.path, file.st_size, file.st_mtime_ns))
    return tuple(sorted(found))


def nested_weights(folder: Path) -> list[Path]:
    """Return what mlx-embeddings takes for weights: in the folder and in all that are in it, wherever links lead.

    Raises:
        BadFile: a link leads to another folder, which could be the whole disk.
    """
    found: list[Path] = []
    for parent, names, files in os.walk(folder):
        links = [name for name in names if Path(parent, name).is_symlink()]
        if links:
            raise BadFile(f"{shown_text(links[0])} is a link to a folder, which no model needs")
        found += [Path(parent, name) for name in fnmatch.filter(files, WEIGHTS)]
    return sorted(found)


def file_problem(name: str, found: os.stat_result) -> str | None:
    """Return why the file *name* of a model's folder must not be read, None if it may."""
    if not stat.S_ISREG(found.st_mode):
        return f"{shown_text(name)} is no regular file"
    most_bytes = MOST_CONFIG_BYTES if name in _SMALL_FILES else MOST_FILE_BYTES
    if found.st_size > most_bytes and not name.endswith(_WEIGHTS_SUFFIX):
        return _too_long(name, found.st_size, most_bytes)
    return None


def is_loaded(name: str) -> bool:
    """Tell whether a load may read a file of this name."""
    return os.path.splitext(name)[1] in LOADED_SUFFIXES  # noqa: PTH122 (a Path costs more than all the rest of a scan)


def shown_text(text: str) -> str:
    """Return a text out of a file as it may stand in messages, logs and names: printable ASCII, of bounded length."""
    cut = text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."
    return _UNREADABLE.sub("?", cut)


def _loaded_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    for part in (folder, *(folder / name for name in _READ_FOLDERS)):
        try:
            with os.scandir(part) as entries:
                yield from (entry for entry in entries if is_loaded(entry.name))
        except (FileNotFoundError, NotADirectoryError):
            if part is folder:
                raise


def _too_long(name: str, n_bytes: int, most_bytes: int) -> str:
    return f"{shown_text(name)} has {show_bytes(n_bytes)}; the maximum for it is {show_bytes(most_bytes)}"


def _bounded(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits, more than the maximum of {_MOST_DIGITS}")
    return int(digits)
