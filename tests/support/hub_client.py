"""Pulls from a fake hub inside the test's process."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import constants

from mlxd.download import hub as hub_module
from mlxd.download.progress import Pulled
from mlxd.protocol.errors import MlxdError
from mlxd.protocol.paths import Home
from tests.support.recording_reporter import RecordingReporter

NAME = "org/tiny"


def point_at(url: str, patch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does when the client is imported."""
    patch.setattr(constants, "ENDPOINT", url)
    template = "{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{template}")


def pull(name: str = NAME, revision: str | None = None) -> tuple[Pulled, list[str]]:
    """Pull; return what is there, and the notes."""
    reporter = RecordingReporter()
    return hub_module.pull(name, revision, reporter, Home.from_environment()), reporter.notes


def refuse(kind: type[MlxdError], name: str = NAME, revision: str | None = None) -> Any:
    """Pull, and return the error, which is exactly of this kind."""
    with pytest.raises(MlxdError) as caught:
        pull(name, revision)
    assert type(caught.value) is kind, caught.value
    return caught.value
