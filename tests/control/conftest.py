"""A home with a short path, since a socket's may have 103 bytes, and a control plane in it."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from mlxd.protocol.paths import Home
from tests.support.control import Client, Plane, running_plane


@pytest.fixture
def home() -> Iterator[Home]:
    """Return a home of this test."""
    root = Path(tempfile.mkdtemp(prefix="mlxd-"))
    yield Home(root)
    shutil.rmtree(root)


@pytest.fixture
async def plane(home: Home) -> AsyncIterator[Plane]:
    """Return a running control plane."""
    async with running_plane(home) as running:
        yield running


@pytest.fixture
async def client(plane: Plane) -> AsyncIterator[Client]:
    """Return a greeted client of it."""
    async with await plane.connect() as connected:
        yield connected
