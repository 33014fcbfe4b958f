"""The one place where errors of the Hugging Face client and its HTTP library become ours, in plain words."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mlxd.download.errors import AccessDenied, DownloadError, NoNetwork, RepositoryNotFound, from_os_error
from mlxd.protocol.errors import InvalidRequest, MlxdError

# Everything that the client raises is one of these: ValueError for names and for answers that are no JSON; RuntimeError
# comes from xet, its library in Rust.
HUB_ERRORS = (OSError, httpx2.HTTPError, httpx2.InvalidURL, ValueError, RuntimeError)

_LOG_IN = "hf auth login, or set HF_TOKEN"


def from_hub(error: Exception, name: str, revision: str | None) -> MlxdError:
    """Return one of ours for what the client raised while it dealt with the model *name*.

    The client wraps causes ("an error happened, check your connection"), so the whole chain is looked at.
    """
    for cause in _chain(error):
        ours = _from_one(cause, name, revision)
        if ours is not None:
            return ours
    if isinstance(error, OSError):
        return from_os_error(error)
    return DownloadError(f"{name} could not be fetched: {_first_line(error)}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ if error.__cause__ is not None else error.__context__


# One case per kind, in order: most of the client's errors are kinds of each other, and of OSError.
def _from_one(  # noqa: C901, PLR0911, PLR0912
    error: BaseException, name: str, revision: str | None
) -> MlxdError | None:
    match error:
        case MlxdError():
            return error
        case GatedRepoError():
            return _gated(name)
        case RepositoryNotFoundError():
            return _not_found(name)
        case RevisionNotFoundError():
            return RepositoryNotFound(
                f"{name} has no revision {revision}", hint=f"see {constants.ENDPOINT}/{name}/tree/main for what it has"
            )
        case DisabledRepoError():
            return AccessDenied(f"{name} was disabled on the hub")
        case OfflineModeIsEnabled():
            return NoNetwork("HF_HUB_OFFLINE keeps the hub's client offline", hint="unset HF_HUB_OFFLINE, then repeat")
        case HfHubHTTPError():
            return _from_status(error, name)
        case HFValidationError():
            return InvalidRequest(f"{name!r} is no name of a model on the hub; write ORG/NAME")
        case FileMetadataError() | json.JSONDecodeError():
            return _no_hub(_first_line(error))
        case httpx2.ProxyError():
            return NoNetwork(f"the proxy refuses: {_first_line(error)}", hint="check HTTPS_PROXY, then repeat")
        case httpx2.TransportError() | httpx2.InvalidURL():
            return _unreachable(_first_line(error))
        case OSError() if error.errno is not None:
            return from_os_error(error)
        case RuntimeError() if "os error 28" in str(error) or "No space left" in str(error):
            return from_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), constants.HF_HUB_CACHE))
        case _:
            return None


def _not_found(name: str) -> RepositoryNotFound:
    whose = "" if get_token() is not None else ", or it is private and needs a token"
    hint = f"look at {constants.ENDPOINT}/models, or {_LOG_IN}"
    return RepositoryNotFound(f"the hub has no model {name}{whose}", hint=hint)


def _gated(name: str) -> AccessDenied:
    page = f"{constants.ENDPOINT}/{name}"
    if get_token() is None:
        return AccessDenied(
            f"{name} is gated: its owner wants to know who fetches it", hint=f"ask at {page}, then {_LOG_IN}"
        )
    return AccessDenied(
        f"{name} is gated, and your account has no access to it (yet)", hint=f"ask at {page}, then repeat the command"
    )


def _from_status(error: HfHubHTTPError, name: str) -> MlxdError:
    status = error.response.status_code
    if status == 401 and get_token() is None:
        return _not_found(name)  # who is not logged in is not told more
    if status == 401:
        return AccessDenied(
            "the hub refuses your token", hint=f"make a new one at {constants.ENDPOINT}/settings/tokens; {_LOG_IN}"
        )
    if status == 403:
        said = f": {error.server_message}" if error.server_message else ""
        return AccessDenied(
            f"the hub does not let you fetch {name}{said}", hint="check what your token is allowed to do"
        )
    if status == 429:
        return NoNetwork("the hub says that there were too many requests", hint="wait a few minutes, then repeat")
    if status >= 500:
        return NoNetwork(f"the hub is out of order (HTTP {status})", hint="repeat later; what came so far is kept")
    return _no_hub(_first_line(error))


def _no_hub(reason: str) -> NoNetwork:
    return NoNetwork(
        f"{constants.ENDPOINT} does not answer as a hub does: {reason}",
        hint="check HF_ENDPOINT, and whether the network wants you to log in (open a web page), then repeat",
    )


def _unreachable(reason: str) -> NoNetwork:
    return NoNetwork(
        f"the hub at {constants.ENDPOINT} cannot be reached: {reason}",
        hint="check the connection, HTTPS_PROXY and HF_ENDPOINT, then repeat; what came so far is kept",
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
