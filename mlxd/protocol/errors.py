"""The exceptions both programs agree on; each class says its code, HTTP status, OpenAI type and exit status.

MlxdError
├─ RequestError        the client's request is at fault (4xx)
│  ├─ InvalidRequest: UnsupportedParameter, ContextLengthExceeded, MalformedRequest
│  ├─ NotFound: ModelNotFound
│  └─ Unauthenticated, Forbidden, RequestTimedOut, InUse, MethodNotAllowed, PayloadTooLarge, UnsupportedMediaType,
│     RateLimited
├─ CapacityError       the machine is short of something (429, 503, 507)
│  └─ QueueFull, QueueTimeout, LoadTimeout, Draining, ModelUnloaded, DoesNotFit, TooManyBodies, TooManyConnections,
│     WaitEnded
├─ EngineError         MLX or mlx-lm failed (500)
│  └─ LoadFailed, OutOfMemory, GenerationFailed, TemplateFailed, RequestCancelled, FirstTokenTimeout
├─ CloudError          an upstream failed (502)
│  └─ UpstreamUnreachable, UpstreamBroke, UpstreamTimeout, UpstreamError, AuthFailed, SecretMissing, CloudDisabled,
│     StreamInterrupted, BudgetExceeded, BreakerOpen
├─ SettingsError       a change of settings is refused
│  ├─ FileInvalid: FileMissing
│  └─ UnknownSetting, InvalidValue, Conflict, InsufficientCapacity, CommitFailed
├─ ProtocolError       the control connection broke the rules
├─ LogUnavailable      the request log cannot be read now
└─ ControlError        mlxctl only: an error as it was received, or no daemon to be reached

There are two renderers: the HTTP envelope (`http/errors.py`) and the control reply (`MlxdError.to_wire`).
"""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_OK = 0
EXIT_OTHER = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_NOT_FOUND = 4
EXIT_CONFLICT = 5
EXIT_CAPACITY = 6
EXIT_WAIT_TIMEOUT = 7
EXIT_DENIED = 8
EXIT_PROTOCOL = 9
EXIT_INVALID = 10
EXIT_INTERRUPTED = 130

_LONGEST_MESSAGE = 4000
_LONGEST_HINT = 500


class MlxdError(Exception):
    """The base: a message a user can act on, and a stable code."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    exit_code: ClassVar[int] = EXIT_OTHER
    # What `x-should-retry` says; None sends no header and leaves it to the client.
    should_retry: ClassVar[bool | None] = None

    def __init_subclass__(cls, **attributes: Any) -> None:
        """Set the attributes that the line of a class gives."""
        super().__init_subclass__()
        for name, value in attributes.items():
            getattr(MlxdError, name)  # a misspelt one is an error
            setattr(cls, name, value)

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Take what happened, with the numbers; *param* is the field or setting at fault.

        *hint* is the next command, or a line for each of several ways.
        *data* holds plain values for clients that branch on them, *code* is for classes that serve several.
        """
        # A message may quote what a client sent, and that may be long: nobody reads it, and a log keeps it.
        self.message = _shorten(message, _LONGEST_MESSAGE)
        super().__init__(self.message)
        self.hint = None if hint is None else _shorten(hint, _LONGEST_HINT)
        self.param = None if param is None else _shorten(param, _LONGEST_HINT)
        if code is not None:
            self.code = code  # type: ignore[misc]
        self.retry_after_s = retry_after_s
        self.data = data if data is not None else {}

    @property
    def ways(self) -> tuple[str, ...]:
        """What may be done next: the lines of the hint."""
        return () if self.hint is None else tuple(self.hint.splitlines())

    def to_wire(self) -> dict[str, Any]:
        """Return the control plane's `e` map: {code, msg, exit, hint?, field?, data?}."""
        more = {"hint": self.hint, "field": self.param, "data": self.data or None}
        given = {name: value for name, value in more.items() if value is not None}
        return {"code": self.code, "msg": self.message, "exit": self.exit_code, **given}


def _shorten(text: str, longest: int) -> str:
    """Return the text, its middle left out when it is longer than *longest* characters."""
    if len(text) <= longest:
        return text
    end = longest // 4
    return f"{text[: longest - end - 5]} ... {text[-end:]}"


class RequestError(
    MlxdError,
    code="invalid_request",
    http_status=400,
    openai_type="invalid_request_error",
    exit_code=EXIT_INVALID,
    should_retry=False,
):
    """The client's request is at fault; sending it again will not help."""


class InvalidRequest(RequestError):
    """A field has a value that cannot be used."""


class UnsupportedParameter(InvalidRequest, code="unsupported_parameter"):
    """A documented field that this server does not act on: refused, never ignored."""


class ContextLengthExceeded(InvalidRequest, code="context_length_exceeded"):
    """The prompt is more than the model's context; `data` may have `prompt_tokens` and `context_tokens`."""


class MalformedRequest(InvalidRequest, code="malformed_request"):
    """What came is no HTTP request that is read here; `data["status"]` is the status that says why."""


class Unauthenticated(
    RequestError,
    code="authentication_error",
    http_status=401,
    openai_type="authentication_error",
    exit_code=EXIT_DENIED,
):
    """There are API keys, and the request has none of them."""


class Forbidden(RequestError, code="forbidden", http_status=403, openai_type="permission_error", exit_code=EXIT_DENIED):
    """The Host, Origin or peer is not allowed, or the model to this API key."""


class RequestTimedOut(RequestError, code="request_timeout", http_status=408):
    """The headers or the body took longer to come than `http.header_timeout` or `http.body_timeout`."""


class InUse(RequestError, code="in_use", http_status=409, exit_code=EXIT_CONFLICT):
    """Something holds what the request would take away."""


class NotFound(RequestError, code="not_found", http_status=404, exit_code=EXIT_NOT_FOUND):
    """There is no such route, operation or thing."""


class ModelNotFound(NotFound, code="model_not_found"):
    """No local model, alias or cloud rule answers to this name."""


class MethodNotAllowed(RequestError, code="method_not_allowed", http_status=405):
    """The route exists, with another method."""


class PayloadTooLarge(RequestError, code="payload_too_large", http_status=413):
    """The body is over `http.max_body`."""


class UnsupportedMediaType(RequestError, code="unsupported_media_type", http_status=415):
    """A POST that is not `application/json`."""


class RateLimited(
    RequestError,
    code="rate_limited",
    http_status=429,
    openai_type="rate_limit_error",
    exit_code=EXIT_CAPACITY,
    should_retry=True,
):
    """The API key has sent too many requests for its rate."""


class CapacityError(MlxdError, code="capacity", http_status=503, exit_code=EXIT_CAPACITY):
    """The machine is short of memory, slots or time; the same request may work later."""


class QueueFull(CapacityError, code="queue_full", http_status=429, openai_type="rate_limit_error"):
    """Too many requests wait already, over all models or for this one."""


class QueueTimeout(CapacityError, code="queue_timeout"):
    """The request waited for `queue.timeout` and could not start."""


class LoadTimeout(CapacityError, code="load_timeout"):
    """The model did not finish loading in time."""


class Draining(CapacityError, code="draining"):
    """The daemon is shutting down."""


class ModelUnloaded(CapacityError, code="model_unloaded"):
    """The model was unloaded by command while the request waited for it."""


class DoesNotFit(CapacityError, code="does_not_fit", http_status=507, should_retry=False):
    """The model or the prompt can never fit under the memory limit."""


class TooManyBodies(CapacityError, code="too_many_bodies"):
    """The bodies of running requests take as much memory as `http.bodies_memory` allows."""


class TooManyConnections(CapacityError, code="too_many_connections"):
    """As many connections are open as `http.max_connections` allows."""


class WaitEnded(CapacityError, code="wait_ended", exit_code=EXIT_WAIT_TIMEOUT):
    """A deadline came before what was waited for; the message says whether that goes on."""


class EngineError(MlxdError, code="error"):
    """MLX or mlx-lm failed."""


class LoadFailed(EngineError, code="load_failed", should_retry=False):
    """The model could not be loaded; carries the cause in words."""


class OutOfMemory(EngineError, code="oom", should_retry=False):
    """An allocation failed, also after idle models were freed and it was tried again."""


class GenerationFailed(EngineError):
    """The model failed while it was answering."""


class TemplateFailed(EngineError, code="template_failed", should_retry=False):
    """The model's chat template does not end, takes too much memory, makes too much text, or crashes."""


class RequestCancelled(EngineError, code="cancelled", http_status=499):
    """The request was ended by an operator or by the end of the daemon."""


class FirstTokenTimeout(EngineError, code="first_token_timeout", http_status=504):
    """The local model has said nothing within the time that a rule allows it."""


class CloudError(MlxdError, code="upstream_error", http_status=502):
    """An upstream server failed."""


class UpstreamUnreachable(CloudError, code="upstream_unreachable"):
    """No connection to the upstream could be made: nothing was sent."""


class UpstreamBroke(CloudError, code="upstream_broke"):
    """The connection broke after the request was sent: the upstream may have answered it, and may charge for it."""


class UpstreamTimeout(CloudError, code="upstream_timeout", http_status=504):
    """The upstream did not answer within its timeouts."""


class UpstreamError(CloudError):
    """The upstream answered with an error; `data` carries its status and body."""


class AuthFailed(CloudError, code="auth_failed", should_retry=False):
    """The upstream refused the provider's key."""


class SecretMissing(CloudError, code="secret_missing", should_retry=False):
    """The provider's key reference leads to nothing."""


class CloudDisabled(
    CloudError, code="cloud_disabled", http_status=403, openai_type="permission_error", should_retry=False
):
    """A rule sends this name to the cloud, and the cloud is off."""


class StreamInterrupted(CloudError, code="stream_interrupted"):
    """The upstream's stream broke after content had been sent."""


class BudgetExceeded(
    CloudError, code="budget_exceeded", http_status=429, openai_type="insufficient_quota", should_retry=False
):
    """The day's budget for the cloud has no room for the request."""


class BreakerOpen(CloudError, code="breaker_open", http_status=503):
    """The target has failed too often; it is not asked for a while."""


class SettingsError(
    MlxdError, code="settings.refused", http_status=400, openai_type="invalid_request_error", exit_code=EXIT_INVALID
):
    """A change of settings is refused; the file and the live settings are as before."""


class UnknownSetting(SettingsError, code="settings.unknown"):
    """No setting has this key; the message names the nearest."""


class InvalidValue(SettingsError, code="settings.invalid_value"):
    """The value is not of the kind, or outside the bounds, that the message states."""


class FileInvalid(SettingsError, code="config.file_invalid", http_status=503, openai_type="server_error"):
    """The file on disk does not parse or validate; names file:line:col."""


class FileMissing(FileInvalid, code="config.file_missing"):
    """The file's folder was moved away or deleted: a disk that is gone, not an edit."""


class Conflict(SettingsError, code="config.conflict", exit_code=EXIT_CONFLICT):
    """The settings moved on since the caller looked (`if_gen`)."""

    @classmethod
    def of_generation(cls, generation: int, expected: int) -> Conflict:
        """Return the error of a caller that *expected* another generation than there is."""
        return cls(
            f"the settings are at generation {generation}, not {expected}",
            hint=f"look at what changed (mlxctl config history), then --if-generation {generation}",
            data={"gen": generation},
        )


class InsufficientCapacity(SettingsError, code="pool.insufficient_capacity", exit_code=EXIT_CAPACITY):
    """The new limit is below what pins or the preload list need."""


class CommitFailed(SettingsError, code="config.commit_failed", exit_code=EXIT_OTHER):
    """The file could not be written (disk full, permission, busy); nothing changed."""


class ProtocolError(MlxdError, code="protocol.error", http_status=400, exit_code=EXIT_PROTOCOL):
    """The peer broke the framing or speaks no common version."""


class LogUnavailable(MlxdError, code="audit.unavailable", http_status=503):
    """The request log cannot be read now."""


class ControlError(MlxdError):
    """In mlxctl: an error as the daemon sent it, or a daemon that cannot be reached."""

    def __init__(self, message: str, *, exit_code: int = EXIT_OTHER, **details: Any) -> None:
        """Keep the exit status next to what `MlxdError` keeps."""
        super().__init__(message, **details)
        self.exit_code = exit_code  # type: ignore[misc]

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> ControlError:
        """Rebuild the error from the `e` map of a reply; unknown keys are ignored."""
        return cls(
            str(wire.get("msg", "the daemon sent an error without a message")),
            exit_code=int(wire.get("exit", EXIT_OTHER)),
            code=str(wire.get("code", cls.code)),
            hint=wire.get("hint"),
            param=wire.get("field"),
            data=wire.get("data"),
        )
