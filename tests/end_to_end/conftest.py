"""Real daemons with tiny models; one per test, because tests steer them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import RealDaemon, running_daemon
from tests.support.tiny_model import write_tiny_model

CONFIG = """\
# my own settings
[http]
port = 0  # any free port

[pool]
# all that models may take
memory = "2GB"
keep_alive = "30m"

[catalog]
paths = ["models"]
"""


@pytest.fixture(name="home")
def _home(tmp_path: Path) -> Path:
    """Return a home with two tiny models, `a` and `b`, of the same size."""
    home = tmp_path / "home"
    for seed, name in enumerate(("a", "b")):
        write_tiny_model(home / "models" / name, seed=seed, context=8192)
    return home


@pytest.fixture(name="daemon")
def _daemon(home: Path) -> Iterator[RealDaemon]:
    """Yield a running daemon on that home."""
    with running_daemon(home, CONFIG) as daemon:
        yield daemon
