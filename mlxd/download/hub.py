"""Models of the Hugging Face hub, into the cache that all its tools share; `huggingface_hub` does the fetching."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging as hub_logging

from mlxd.download import staging
from mlxd.download.errors import (
    ChecksumMismatch,
    HubAnswerInvalid,
    Interrupted,
    NoNetwork,
    NoWeights,
    RepositoryNotFound,
)
from mlxd.download.hub_blob import BigFile, Meter, fetch_blob, partial_bytes, snapshot_bar
from mlxd.download.hub_errors import HUB_ERRORS, from_hub
from mlxd.download.progress import Pulled, Reporter
from mlxd.download.roots import find_entry, note_if_unsearched
from mlxd.protocol.paths import Home

# What mlx-lm reads, without Python code: that of a repository is never run.
PATTERNS = ("*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja")
WEIGHTS = "model*.safetensors"
# From here on a file is worth going on with after a kill. Over the upper bound plain HTTP is not served.
BIG_BYTES = 16 << 20
_HTTP_MAX_BYTES = constants.MAX_HTTP_DOWNLOAD_SIZE
_SHA1, _SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
# Enough to fill a line, and few enough for each file to get done.
_FILES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files of one commit that are wanted."""

    commit: str
    files: tuple[RepoFile, ...]


def pull(name: str, revision: str | None, reporter: Reporter, home: Home) -> Pulled:
    """Fetch the model *name* (`ORG/NAME`) into the hub's cache, or find it there.

    Raises:
        MlxdError: in words, with what to do next; what came so far is kept for the next time.
    """
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        try:
            snapshot, already = _fetch(name, revision, reporter)
        except HUB_ERRORS as error:
            if isinstance(error, BrokenPipeError):
                raise  # of stdout: see __main__
            raise from_hub(error, name, revision) from error
    except NoNetwork as error:
        on_disk = _on_disk(name, revision)
        if on_disk is None:
            raise
        reporter.note(f"{error.message}; the copy on disk is used, and may not be the newest")
        snapshot, already = on_disk, True
    return _pulled(name, snapshot, reporter, home, already=already)


def _fetch(name: str, revision: str | None, reporter: Reporter) -> tuple[Path, bool]:
    """Return the folder of the snapshot, and whether all of it was there before."""
    listing = _list_files(HfApi(library_name="mlxd"), name, revision)
    cache = Path(constants.HF_HUB_CACHE)
    folder = cache / repo_folder_name(repo_id=name, repo_type="model")
    blobs = folder / "blobs"
    missing = [file for file in listing.files if not _is_cached(file, folder, listing.commit)]
    big = [
        BigFile(file.path, file.size, file.lfs.sha256)
        for file in missing
        if file.lfs is not None and BIG_BYTES <= file.size <= _HTTP_MAX_BYTES
    ]
    total_bytes = sum(file.size for file in listing.files)
    missing_bytes = sum(file.size for file in missing)
    staging.ensure_folder(cache)
    staging.check_space(cache, missing_bytes - sum(partial_bytes(file, blobs) for file in big))
    meter = Meter(reporter, total_bytes, total_bytes - missing_bytes)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        fetches = [threads.submit(fetch_blob, name, listing.commit, file, blobs, meter) for file in big]
        try:
            for fetch in fetches:
                fetch.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
    snapshot = snapshot_download(
        name,
        revision=revision,
        allow_patterns=list(PATTERNS),
        max_workers=_FILES_AT_ONCE,
        tqdm_class=snapshot_bar(meter),
        library_name="mlxd",
    )
    fetched = {file.path for file in big}
    for file in missing:
        if file.path not in fetched:
            _verify(file, Path(snapshot) / file.path)
    return Path(snapshot), not missing


def _list_files(api: HfApi, name: str, revision: str | None) -> _Listing:
    try:
        commit = api.model_info(name, revision=revision).sha
    except HfHubHTTPError as error:
        ours = from_hub(error, name, revision)
        if isinstance(ours, RepositoryNotFound) and not isinstance(error, RevisionNotFoundError):
            raise _with_nearest(ours, _nearest(api, name)) from error
        raise ours from error
    if commit is None:
        raise RepositoryNotFound(f"the hub names no commit of {name}")
    _check_digest(commit, _SHA1, name)
    tree = api.list_repo_tree(name, revision=commit, recursive=True)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    if not any(fnmatch.fnmatch(file.path, WEIGHTS) for file in files):
        nearest = _nearest(api, name)
        raise NoWeights(
            f"{name} has no safetensors weights, so it cannot be served",
            hint=f"mlxctl model pull {nearest[0]}"
            if nearest
            else "look for an MLX conversion: mlx-community on the hub",
            data={"nearest": nearest},
        )
    wanted = [file for file in files if any(fnmatch.fnmatch(file.path, pattern) for pattern in PATTERNS)]
    for file in wanted:
        if file.lfs is not None:
            _check_digest(file.lfs.sha256, _SHA256, file.path)
    return _Listing(commit, tuple(wanted))


def _check_digest(digest: str, shape: re.Pattern[str], name: str) -> None:
    """Pass a digest that can be part of a path in the cache.

    Raises:
        HubAnswerInvalid: it could lead elsewhere.
    """
    if not shape.fullmatch(digest):
        raise HubAnswerInvalid(
            f"{constants.ENDPOINT} gives {name} the digest {digest[:80]!r}, which is none; nothing was fetched",
            hint="check HF_ENDPOINT",
        )


def _verify(file: RepoFile, path: Path) -> None:
    """Hold a file of the client's against the digest in the hub's listing: the client looks at its size only.

    Raises:
        ChecksumMismatch: it is another; it is deleted.
    """
    expected = file.blob_id if file.lfs is None else file.lfs.sha256
    with path.open("rb") as content:
        size_bytes = os.fstat(content.fileno()).st_size
        # How git names the content of a file.
        begun = hashlib.sha1(b"blob %d\0" % size_bytes) if file.lfs is None else hashlib.sha256()  # noqa: S324
        found = hashlib.file_digest(content, lambda: begun).hexdigest()
    if found != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ChecksumMismatch(
            f"what came of {file.path} is not what the hub has; it was thrown away", hint="repeat the command"
        )


def _with_nearest(error: RepositoryNotFound, nearest: list[str]) -> RepositoryNotFound:
    if not nearest:
        return error
    return RepositoryNotFound(
        f"{error.message}; the nearest MLX models are {', '.join(nearest)}",
        hint=f"mlxctl model pull {nearest[0]}",
        data={"nearest": nearest},
    )


def _nearest(api: HfApi, name: str) -> list[str]:
    """Return a few MLX models of the hub that look like *name*; none when it cannot be asked."""
    try:
        found = list(api.list_models(search=name.rpartition("/")[2], filter="mlx", limit=3))
    except HUB_ERRORS:
        return []
    return [model.id for model in found]


def _is_cached(file: RepoFile, folder: Path, commit: str) -> bool:
    if (folder / "snapshots" / commit / file.path).exists():
        return True
    return file.lfs is not None and (folder / "blobs" / file.lfs.sha256).exists()


def _on_disk(name: str, revision: str | None) -> Path | None:
    """Return the snapshot if all of it is on disk; asks nobody."""
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS), local_files_only=True)
    except HUB_ERRORS:
        return None
    return Path(found) if any(Path(found).glob(WEIGHTS)) else None


def _pulled(name: str, snapshot: Path, reporter: Reporter, home: Home, *, already: bool) -> Pulled:
    """Return the model under the id that the catalog gives it; notes say why it may not be served."""
    cache = Path(constants.HF_HUB_CACHE)
    entry = find_entry(cache, snapshot)
    if entry is None:
        reporter.note(f"{name} is served as of its branch main; a commit is found by its path only")
    elif entry.problem is not None:
        reporter.note(f"{entry.id} cannot be served: {entry.problem}")
    note_if_unsearched(cache, home, reporter)
    return Pulled(name if entry is None else entry.id, snapshot, already=already)


def end_on_signals(reporter: Reporter) -> None:
    """Let SIGINT and SIGTERM end the process at once: the client would wait for its threads, which may take minutes."""

    def end(signal_number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        with contextlib.suppress(OSError):
            reporter.error(Interrupted("interrupted; what came so far is kept", hint="repeat the command to go on"))
        os._exit(Interrupted.exit_code)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
