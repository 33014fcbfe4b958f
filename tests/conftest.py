"""What every test gets: an environment that holds nothing of the person who runs it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.tally import Tally

# A shared machine may stall any example: a time limit per example would test the machine.
hypothesis.settings.register_profile("mlxd", deadline=None)
# `make soak-histories`, `make fuzz-folders`: a hundred times as much.
hypothesis.settings.register_profile("soak", deadline=None, max_examples=10_000)
hypothesis.settings.load_profile("mlxd")

# Tokens, endpoints and caches of the hub; keys and addresses of the clients; what bends the width or colour of output.
_FOREIGN_PREFIXES = ("HF_", "HUGGING_FACE_", "TRANSFORMERS_", "OPENAI_", "ANTHROPIC_", "MLXD_", "MLX_")
_FOREIGN_NAMES = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "SSH_CONNECTION")


@pytest.fixture(scope="session", autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[None]:
    """Take the user's settings out of the environment, for fixtures of every scope and for child processes."""
    # A shell starts jobs in the background with Ctrl-C ignored, and so would be this process and its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(_FOREIGN_PREFIXES) or name in _FOREIGN_NAMES:
                patch.delenv(name)
        # Models that the user has in the hub's cache must not show up in a catalog.
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        # A proxy may be what pip needs; loopback never goes through it.
        patch.setenv("NO_PROXY", "127.0.0.1,localhost,::1")
        patch.setenv("no_proxy", "127.0.0.1,localhost,::1")
        # Where no byte code may lie beside the sources, each daemon would compile all that it imports, a second each
        # time: children keep it in a folder that `make clean` removes.
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            patch.delenv("PYTHONDONTWRITEBYTECODE")
            patch.setenv("PYTHONPYCACHEPREFIX", str(pytestconfig.rootpath / ".pytest_cache" / "bytecode"))
        yield


@pytest.fixture(autouse=True)
def own_home(clean_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point `MLXD_HOME` at a folder of this test; it does not exist yet."""
    monkeypatch.setenv("MLXD_HOME", str(tmp_path / "mlxd-home"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the random histories of the pool have looked at, if there were any."""
    tally = Tally()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, counted in (
                getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ()
            ):
                if name == "pool histories":
                    tally.add(counted)
    if tally.histories:
        terminalreporter.section("promises of the pool")
        for line in tally.lines():
            terminalreporter.line(line)
