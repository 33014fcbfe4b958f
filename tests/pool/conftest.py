"""Counts what the random histories of the pool have looked at, and says so at the end of the run."""

from __future__ import annotations

import pytest

from tests.support.promise.base import Tally

_TALLY = pytest.StashKey[Tally]()


@pytest.fixture(name="tally", scope="session")
def _tally(request: pytest.FixtureRequest) -> Tally:
    """Return the one tally of this run."""
    return request.config.stash.setdefault(_TALLY, Tally())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tally, if there were any histories."""
    tally = config.stash.get(_TALLY, None)
    if tally is not None and tally.histories:
        terminalreporter.section("promises of the pool")
        for line in tally.lines():
            terminalreporter.line(line)
