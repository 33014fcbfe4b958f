"""How a model of the hub comes in, whatever the connection does; in this process, against a server on a real socket."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from mlxd.download import hub as hub_module
from mlxd.download.errors import ChecksumMismatch, HubAnswerInvalid
from mlxd.download.hub_blob import BigFile, HashedFile, Meter, fetch_blob
from mlxd.protocol.paths import Home
from tests.support.fake_hub import COMMIT, FakeHub
from tests.support.hub_client import NAME, pull, refuse
from tests.support.recording_reporter import RecordingReporter


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small files count as big ones, and come in pieces of a kilobyte."""
    monkeypatch.setattr(hub_module, "BIG_BYTES", 1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)


@pytest.fixture
def weights(hub: FakeHub) -> bytes:
    """Return the content of the model's weights: 25 kB."""
    return hub.repositories[NAME].files["model.safetensors"]


def test_token_stays_with_the_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, small_pieces: None) -> None:
    """A private model comes with its token, which is sent to the hub and to no other host."""
    monkeypatch.setenv("HF_TOKEN", "good")
    pull("org/private")
    assert {seen.authorization for seen in hub.seen if not seen.path.startswith("/cdn/")} == {"Bearer good"}
    assert {seen.authorization for seen in hub.seen if seen.path.startswith("/cdn/")} == {None}


@pytest.mark.parametrize("reset", [False, True])
def test_cut_connection(hub: FakeHub, weights: bytes, small_pieces: None, reset: bool) -> None:
    """A connection that breaks is made again, from the byte where it broke."""
    hub.cuts, hub.reset = [15_000], reset
    reporter = RecordingReporter()
    pulled = hub_module.pull(NAME, None, reporter, Home.from_environment())
    assert (pulled.path / "model.safetensors").read_bytes() == weights
    first, second = hub.ranges()
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=")[:-1]) <= 15_000
    done, total = reporter.phases["downloading"][-1]
    assert done == total == sum(file.stat().st_size for file in pulled.path.iterdir())


def test_left_over_of_a_dead_process(hub: FakeHub, cache: Path, weights: bytes, small_pieces: None) -> None:
    """What a dead process left is gone on with, and counted from the start."""
    left_over(cache, weights, weights[:20_000])
    reporter = RecordingReporter()
    pulled = hub_module.pull(NAME, None, reporter, Home.from_environment())
    assert hub.ranges() == ["bytes=20000-"]
    assert (pulled.path / "model.safetensors").read_bytes() == weights
    assert all(done <= total for done, total in reporter.phases["downloading"] if total is not None)
    assert reporter.phases["downloading"][1][0] == 20_000


def test_whole_left_over(hub: FakeHub, cache: Path, weights: bytes, small_pieces: None) -> None:
    """A left-over that is whole already is not fetched again."""
    left_over(cache, weights, weights)
    assert (pull()[0].path / "model.safetensors").read_bytes() == weights
    assert hub.ranges() == []


@pytest.mark.parametrize("content", [b"x" * 20_000, b"x" * 30_000])
def test_left_over_that_does_not_fit(
    hub: FakeHub, cache: Path, weights: bytes, small_pieces: None, content: bytes
) -> None:
    """A left-over with other bytes is noticed by its checksum and thrown away; one that is too long, at once."""
    left_over(cache, weights, content)
    if len(content) < len(weights):
        assert "was thrown away" in refuse(ChecksumMismatch).message
    assert (pull()[0].path / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("ending", [".safetensors", "config.json"])
@pytest.mark.parametrize("is_big", [False, True])
def test_bytes_that_are_not_the_hubs(
    hub: FakeHub, cache: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch, ending: str, is_big: bool
) -> None:
    """A file with the right size and another content is thrown away, big or small, and nothing of it is believed."""
    if is_big:
        monkeypatch.setattr(hub_module, "BIG_BYTES", 1)
    hub.spoils = (ending,)
    assert f"{ending} is not what the hub has" in refuse(ChecksumMismatch).message
    hub.spoils = ()
    pulled = pull()[0].path
    assert (pulled / "model.safetensors").read_bytes() == weights
    assert (pulled / "config.json").read_bytes() == hub.repositories[NAME].files["config.json"]


def test_a_server_that_ignores_what_was_there(cache: Path, tmp_path: Path) -> None:
    """It sends the whole file again: what was there is cut off, and does not count for the checksum."""
    with (tmp_path / "part").open("w+b") as file:
        file.write(b"earlier")
        hashed = HashedFile(file)
        assert hashed.sha256 == hashlib.sha256(b"earlier").hexdigest()
        hashed.write(b", more")
        hashed.seek(hashed.tell() - len(b"lier, more"))
        hashed.truncate()
        hashed.write(b"!")
        assert hashed.sha256 == hashlib.sha256(b"ear!").hexdigest()
        assert hashed.tell() == 4


@pytest.mark.parametrize("digest", ["../../../../escaped", "x" * 64, "", "A" * 64, "0" * 63])
def test_a_digest_is_no_path(hub: FakeHub, cache: Path, small_pieces: None, digest: str) -> None:
    """A hub that gives a name in the place of a checksum has nothing written."""
    hub.digests["model.safetensors"] = digest
    assert "which is none" in refuse(HubAnswerInvalid).message
    assert [path.name for path in cache.parent.rglob("*") if path.is_file()] == ["weights"]  # the hub's own


def test_two_pulls_of_one_file(hub: FakeHub, cache: Path, weights: bytes, small_pieces: None) -> None:
    """Of two that fetch the same file one transfers it; the other waits and finds it."""
    file = BigFile("model.safetensors", len(weights), hashlib.sha256(weights).hexdigest())
    meter = Meter(RecordingReporter(), 2 * len(weights), 0)
    blobs = cache / "blobs"
    threads = [threading.Thread(target=fetch_blob, args=(NAME, COMMIT, file, blobs, meter)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.ranges()) == 1
    assert [path.name for path in blobs.iterdir()] == [file.sha256]


def test_small_files_by_the_client(hub: FakeHub, weights: bytes) -> None:
    """Small weights are left to the client, and counted all the same."""
    reporter = RecordingReporter()
    pulled = hub_module.pull(NAME, None, reporter, Home.from_environment())
    done, total = reporter.phases["downloading"][-1]
    assert done == total
    assert (pulled.path / "model.safetensors").read_bytes() == weights


def test_revision(hub: FakeHub) -> None:
    """A named revision is fetched and served beside main under an id of its own."""
    hub.repositories[NAME].revisions = {"main": COMMIT, "v1": "2" * 40}
    assert pull()[0].model_id == NAME
    assert pull(revision="v1")[0].model_id == "org/tiny@v1"
    assert pull()[0].model_id == NAME


def test_model_that_cannot_be_served(hub: FakeHub) -> None:
    """A model of another kind is fetched, with a note that says why it cannot be served."""
    pulled, notes = pull("org/bert")
    assert pulled.path.name == COMMIT
    assert any("org/bert cannot be served: an embedding model" in note for note in notes)


def test_commit_beside_main(hub: FakeHub) -> None:
    """A bare commit beside main is fetched, with a note that main is what is served."""
    hub.repositories[NAME].revisions = {"main": COMMIT, "old": "2" * 40}
    assert pull()[1] == pull()[1]
    pulled, notes = pull(revision="2" * 40)
    assert pulled.path.name == "2" * 40
    assert any("is served as of its branch main" in note for note in notes)


def left_over(cache: Path, weights: bytes, content: bytes) -> None:
    """Write what a process left when it died."""
    blobs = cache / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(weights).hexdigest()}.mlxd.incomplete").write_bytes(content)
