"""Reads the pooling that a model of vectors was trained with, and the lengths that its vectors may be cut to.

`1_Pooling/config.json` is how sentence-transformers writes the first, `matryoshka_dimensions` and `is_matryoshka` in
config.json are how servers of embeddings read the second. mlx-lm copies the first to no model that it converts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxd.engine.config import Config
from mlxd.engine.model_file import BadFile, read_object
from mlxd.engine.vector import Pooling
from mlxd.protocol.errors import LoadFailed

_FILE = Path("1_Pooling") / "config.json"
_POOLINGS = {"mean": Pooling.MEAN, "cls": Pooling.FIRST, "lasttoken": Pooling.LAST}
_PREFIX = "pooling_mode_"


def read_pooling(model_id: str, folder: Path) -> Pooling | None:
    """Return how the model's hidden states are pooled; None where nothing is said, as in what mlx-lm has converted.

    Raises:
        LoadFailed: in a way that is not known here, or the file cannot be read.
    """
    try:
        config = read_object(folder / _FILE)
    except FileNotFoundError:
        return None
    except (OSError, BadFile) as error:
        raise LoadFailed(f"model '{model_id}': {folder / _FILE} cannot be read: {error}") from error
    modes = _modes(config)
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise LoadFailed(
            f"model '{model_id}' pools by {' and '.join(modes) or 'nothing'} ({_FILE});"
            " mean, cls and lasttoken are known"
        )
    return _POOLINGS[modes[0]]


def _modes(config: dict[str, Any]) -> list[str]:
    named = config.get("pooling_mode")
    if isinstance(named, str):
        return [named]
    return [
        key.removeprefix(_PREFIX).removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith(_PREFIX) and value is True
    ]


def shorter_dimensions(config: Config, dimensions: int) -> Sequence[int]:
    """Return the lengths below *dimensions* that the model's vectors may be cut to."""
    listed = config.get("matryoshka_dimensions")
    if isinstance(listed, list):
        return tuple(sorted(length for length in listed if type(length) is int and 0 < length < dimensions))
    return range(1, dimensions) if config.get("is_matryoshka") is True else ()
