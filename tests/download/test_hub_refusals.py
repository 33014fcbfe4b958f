"""What is said when the hub does not give a model; in this process, against a server on a real socket."""

from __future__ import annotations

import errno
from pathlib import Path

import httpx2
import pytest

from mlxd.download import hub as hub_module
from mlxd.download import hub_blob
from mlxd.download.errors import AccessDenied, DiskFull, DownloadError, NoNetwork, NoWeights, RepositoryNotFound
from mlxd.download.hub_errors import from_hub
from mlxd.download.progress import Pulled
from mlxd.protocol.errors import InvalidRequest, MlxdError
from tests.support.fake_hub import FakeHub
from tests.support.hub_client import NAME, point_at, pull, refuse

CLOSED = "http://127.0.0.1:9"


@pytest.mark.parametrize(("token", "words"), [("", "wants to know"), ("good", "your account has no access")])
def test_gated(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str, words: str) -> None:
    """A gated model is explained, with the page to ask at, whether there is a token or not."""
    monkeypatch.setenv("HF_TOKEN", token)
    error = refuse(AccessDenied, "org/gated")
    assert error.message.startswith("org/gated is gated")
    assert words in error.message
    assert f"{hub.url}/org/gated" in error.hint


@pytest.mark.parametrize("token", ["", "good"])
def test_missing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """A model that is not there may be a private one, as long as there is no token."""
    monkeypatch.setenv("HF_TOKEN", token)
    error = refuse(RepositoryNotFound, "org/zzzz")
    assert error.message.startswith("the hub has no model org/zzzz")
    assert ("private" in error.message) is not bool(token)
    assert "/models" in error.hint


def test_missing_with_nearest(hub: FakeHub) -> None:
    """The nearest names of the hub come with the command that fetches the first."""
    error = refuse(RepositoryNotFound, "other/tiny")
    assert error.message.endswith("; the nearest MLX models are org/tiny")
    assert error.hint == "mlxctl model pull org/tiny"


def test_missing_revision(hub: FakeHub) -> None:
    """A revision that is not there is told apart from a missing model."""
    assert refuse(RepositoryNotFound, revision="v9").message == "org/tiny has no revision v9"


def test_refused_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong token is named as such, not as a missing model."""
    monkeypatch.setenv("HF_TOKEN", "wrong")
    error = refuse(AccessDenied)
    assert error.message == "the hub refuses your token"
    assert "/settings/tokens" in error.hint


@pytest.mark.parametrize("name", ["a/b/c", "org/na me", "--", "org/", "x..y", ""])
def test_impossible_name(hub: FakeHub, name: str) -> None:
    """A name that cannot be one on the hub is refused with the form that it should have."""
    assert "ORG/NAME" in refuse(InvalidRequest, name).message


def test_no_weights(hub: FakeHub, cache: Path) -> None:
    """A repository without safetensors is refused before anything is fetched."""
    assert "has no safetensors weights" in refuse(NoWeights, "org/gguf-only").message
    assert not cache.exists()


@pytest.mark.parametrize("status", [403, 503])
def test_hub_out_of_order(hub: FakeHub, status: int) -> None:
    """A hub that refuses everything is reported with what it says."""
    hub.status = status
    error = refuse({403: AccessDenied, 503: NoNetwork}[status])
    assert {403: "does not let you", 503: "HTTP 503"}[status] in error.message


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be reached is named with its address."""
    point_at(CLOSED, monkeypatch)
    assert f"{CLOSED} cannot be reached" in refuse(NoNetwork).message


def test_no_network_with_a_copy(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network a whole copy on disk is used, and said to be perhaps old; half a copy is not."""
    path = pull()[0].path
    point_at(CLOSED, monkeypatch)
    pulled, notes = pull()
    assert pulled == Pulled(NAME, path, already=True)
    assert any("the copy on disk is used" in note for note in notes)
    (path / "tokenizer.json").unlink()
    refuse(NoNetwork)


@pytest.mark.parametrize("path", ["cdn", "portal"])
def test_something_else_at_the_address(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A server that is no hub, or the log-in page of a network, is an error in words."""
    point_at(f"{hub.url}/{path}", monkeypatch)
    assert "does not answer as a hub does" in refuse(NoNetwork).message


def test_too_little_space(hub: FakeHub) -> None:
    """A model that is bigger than the disk is refused with both sizes, before it is fetched."""
    hub.repositories[NAME].claimed_bytes = 10**15
    error = refuse(DiskFull)
    assert error.data["needed_bytes"] > 10**15
    assert hub.ranges() == []


@pytest.mark.parametrize("where", ["big", "small"])
def test_full_disk(hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A disk that fills up is one clear error, in the files that are gone on with as in the client's own."""

    def fill(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "big":
        monkeypatch.setattr(hub_module, "BIG_BYTES", 1)
        monkeypatch.setattr(hub_blob, "http_get", fill)
    else:
        monkeypatch.setattr("huggingface_hub.file_download.http_get", fill)
    error = refuse(DiskFull)
    assert "free some space" in error.hint


def _chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (_chained(ValueError("x"), httpx2.ConnectError("no route")), NoNetwork, "no route"),
        (httpx2.ReadTimeout(""), NoNetwork, "ReadTimeout"),
        (httpx2.ProxyError("407 Proxy Authentication Required"), NoNetwork, "the proxy refuses: 407"),
        (httpx2.InvalidURL("no scheme"), NoNetwork, "no scheme"),
        (RuntimeError("Data processing error: I/O error: No space left on device (os error 28)"), DiskFull, "full"),
        (RuntimeError("xet: odd\nmore"), DownloadError, "org/tiny could not be fetched: xet: odd"),
        (OSError("Consistency check failed"), DownloadError, "Consistency check failed"),
        (_chained(RuntimeError("x"), DiskFull("ours")), DiskFull, "ours"),
    ],
)
def test_foreign_errors(error: Exception, kind: type[MlxdError], words: str) -> None:
    """What the client and its libraries raise becomes ours, by its innermost cause that is known."""
    ours = from_hub(error, NAME, None)
    assert type(ours) is kind
    assert words in ours.message
