"""Counts what the random histories of the pool have looked at; `tests/conftest.py` says so at the end of the run."""

from __future__ import annotations

import pytest

from tests.support.tally import Tally

_TALLY = pytest.StashKey[Tally]()


@pytest.fixture(name="tally", scope="session")
def _tally(request: pytest.FixtureRequest) -> Tally:
    """Return the one tally of this process."""
    return request.config.stash.setdefault(_TALLY, Tally())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Send the counts of a test along with its report: it may have run in another process."""
    tally = item.config.stash.get(_TALLY, None)
    if tally is not None and call.when == "call":
        item.user_properties.append(("pool histories", tally.take()))
