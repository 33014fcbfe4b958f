"""Real daemons with tiny models; one per test, because tests steer them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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


Spoil = Callable[[str], AbstractContextManager[RealDaemon]]


@pytest.fixture(name="switch")
def _switch(tmp_path: Path) -> Path:
    """Return the file in whose presence a spoilt daemon goes wrong."""
    return tmp_path / "switch"


@pytest.fixture(name="spoil")
def _spoil(home: Path, tmp_path: Path, switch: Path) -> Spoil:
    """Return what runs a daemon in whose device thread something goes wrong: run (it fails) or load (it hangs)."""

    def run(what: str) -> AbstractContextManager[RealDaemon]:
        (tmp_path / "sitecustomize.py").write_text(_SABOTAGE)
        environment = {"PYTHONPATH": str(tmp_path), "SABOTAGE": what, "SWITCH": str(switch)}
        return running_daemon(home, CONFIG, environment=environment)

    return run


# Imported by the daemon at its start; the device thread calls gc.freeze when it begins to run.
_SABOTAGE = """
import gc, os, sys, threading
freeze = gc.freeze

def sabotage():
    freeze()
    if os.environ["SABOTAGE"] == "run":
        spoil(sys.modules["mlxd.engine.runner"].Runner, "_run_pass", lambda self: 1 / 0)
    else:
        spoil(sys.modules["mlxd.engine.loader"].SlicedLoad, "advance", hang)

def hang(load, n):
    print("a load hangs", file=sys.stderr, flush=True)
    threading.Event().wait()

def spoil(owner, name, fault):
    sound = getattr(owner, name)
    def spoilt(self, *args):
        return (fault if os.path.exists(os.environ["SWITCH"]) else sound)(self, *args)
    setattr(owner, name, spoilt)

gc.freeze = sabotage
"""
