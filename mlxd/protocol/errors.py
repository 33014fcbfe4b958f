"""The exceptions both programs agree on.

* MlxdError
  x RequestError                 the client's request is at fault (4xx)
    + InvalidRequest             400 invalid_request, names the field
      - UnsupportedParameter     400 unsupported_parameter
      - ContextLengthExceeded    400 context_length_exceeded
    + Forbidden                  403 forbidden
    + InUse                      409 in_use: a loaded model's files, a running operation
    + NotFound                   404 not_found
      - ModelNotFound            404 model_not_found, with the nearest names
    + MethodNotAllowed           405 method_not_allowed
    + PayloadTooLarge            413 payload_too_large
    + UnsupportedMediaType       415 unsupported_media_type
  x CapacityError                the machine is short of something
    + QueueFull                  429 queue_full
    + QueueTimeout               503 queue_timeout
    + LoadTimeout                503 load_timeout
    + Draining                   503 draining
    + ModelUnloaded              503 model_unloaded
    + DoesNotFit                 507 does_not_fit
    + WaitEnded                  exit 7: a deadline came before what was waited for
  x EngineError                  MLX or mlx-lm failed (500)
    + LoadFailed                 500 load_failed
    + OutOfMemory                500 oom
    + GenerationFailed           500 error
    + RequestCancelled           499 cancelled by an operator
  x CloudError                   an upstream failed
    + UpstreamUnreachable        502 upstream_unreachable
    + UpstreamTimeout            504 upstream_timeout
    + UpstreamError              the upstream's own status, 502 when it has none
    + AuthFailed                 502 auth_failed
    + SecretMissing              502 secret_missing
    + CloudDisabled              403 cloud_disabled
    + StreamInterrupted          502 stream_interrupted
  x SettingsError                a change of settings is refused
    + UnknownSetting             settings.unknown
    + InvalidValue               settings.invalid_value, names key and bound
    + FileInvalid                config.file_invalid, names file:line:col
    + Conflict                   config.conflict
    + InsufficientCapacity       exit 6: pinned models, preload sum, ...
    + CommitFailed               config.commit_failed: disk full, permission, ...
  x ProtocolError                the control connection broke the rules
  x ControlError                 mlxctl only: an error as it was received, or no daemon to be reached

Code, HTTP status, OpenAI type, exit status and retryability sit on the class. There are two renderers of these: the
HTTP envelope (`openai/errors.py`) and the control reply (`to_wire`).
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


class MlxdError(Exception):
    """The base: a message a user can act on, and a stable code."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    openai_type: ClassVar[str] = "server_error"
    exit_code: ClassVar[int] = EXIT_OTHER
    # What `x-should-retry` says; None sends no header and leaves it to the client.
    should_retry: ClassVar[bool | None] = None

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
        """Take what happened, with the numbers; *hint* is the next command, *param* the field or setting at fault.

        *data* holds plain values for clients that branch on them, *code* is for classes that serve several.
        """
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        if code is not None:
            self.code = code  # type: ignore[misc]
        self.retry_after_s = retry_after_s
        self.data = data if data is not None else {}

    def to_wire(self) -> dict[str, Any]:
        """Return the control plane's `e` map: {code, msg, exit, hint?, field?, data?}."""
        more = {"hint": self.hint, "field": self.param, "data": self.data or None}
        given = {name: value for name, value in more.items() if value is not None}
        return {"code": self.code, "msg": self.message, "exit": self.exit_code, **given}


class RequestError(MlxdError):
    """The client's request is at fault; sending it again will not help."""

    code = "invalid_request"
    http_status = 400
    openai_type = "invalid_request_error"
    exit_code = EXIT_INVALID
    should_retry = False


class InvalidRequest(RequestError):
    """A field has a value that cannot be used."""


class UnsupportedParameter(InvalidRequest):
    """A documented field that this server does not act on: refused, never ignored."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt and the tokens asked for are more than the model's context."""

    code = "context_length_exceeded"


class Forbidden(RequestError):
    """The Host, Origin or peer is not allowed."""

    code = "forbidden"
    http_status = 403
    openai_type = "permission_error"
    exit_code = EXIT_DENIED


class InUse(RequestError):
    """Something holds what the request would take away."""

    code = "in_use"
    http_status = 409
    exit_code = EXIT_CONFLICT


class NotFound(RequestError):
    """There is no such route, operation or thing."""

    code = "not_found"
    http_status = 404
    exit_code = EXIT_NOT_FOUND


class ModelNotFound(NotFound):
    """No local model, alias or cloud rule answers to this name."""

    code = "model_not_found"


class MethodNotAllowed(RequestError):
    """The route exists, with another method."""

    code = "method_not_allowed"
    http_status = 405


class PayloadTooLarge(RequestError):
    """The body is over `http.max_body`."""

    code = "payload_too_large"
    http_status = 413


class UnsupportedMediaType(RequestError):
    """A POST that is not `application/json`."""

    code = "unsupported_media_type"
    http_status = 415


class CapacityError(MlxdError):
    """The machine is short of memory, slots or time; the same request may work later."""

    code = "capacity"
    http_status = 503
    exit_code = EXIT_CAPACITY


class QueueFull(CapacityError):
    """Too many requests wait already, over all models or for this one."""

    code = "queue_full"
    http_status = 429
    openai_type = "rate_limit_error"


class QueueTimeout(CapacityError):
    """The request waited for `queue.timeout` and could not start."""

    code = "queue_timeout"


class LoadTimeout(CapacityError):
    """The model did not finish loading in time."""

    code = "load_timeout"


class Draining(CapacityError):
    """The daemon is shutting down."""

    code = "draining"


class ModelUnloaded(CapacityError):
    """The model was unloaded by command while the request waited for it."""

    code = "model_unloaded"


class DoesNotFit(CapacityError):
    """The model or the prompt can never fit under the memory limit."""

    code = "does_not_fit"
    http_status = 507
    should_retry = False


class WaitEnded(CapacityError):
    """A deadline came before what was waited for; the message says whether that goes on."""

    code = "wait_ended"
    exit_code = EXIT_WAIT_TIMEOUT


class EngineError(MlxdError):
    """MLX or mlx-lm failed."""

    code = "error"


class LoadFailed(EngineError):
    """The model could not be loaded; carries the cause in words."""

    code = "load_failed"
    should_retry = False


class OutOfMemory(EngineError):
    """An allocation failed, also after idle models were freed and it was tried again."""

    code = "oom"
    should_retry = False


class GenerationFailed(EngineError):
    """The model failed while it was answering."""


class RequestCancelled(EngineError):
    """The request was ended by an operator or by the end of the daemon."""

    code = "cancelled"
    http_status = 499


class CloudError(MlxdError):
    """An upstream server failed."""

    code = "upstream_error"
    http_status = 502


class UpstreamUnreachable(CloudError):
    """No connection to the upstream could be made."""

    code = "upstream_unreachable"


class UpstreamTimeout(CloudError):
    """The upstream did not answer within its timeouts."""

    code = "upstream_timeout"
    http_status = 504


class UpstreamError(CloudError):
    """The upstream answered with an error; `data` carries its status and body."""


class AuthFailed(CloudError):
    """The upstream refused the provider's key."""

    code = "auth_failed"
    should_retry = False


class SecretMissing(CloudError):
    """The provider's key reference leads to nothing."""

    code = "secret_missing"
    should_retry = False


class CloudDisabled(CloudError):
    """A rule sends this name to the cloud, and the cloud is off."""

    code = "cloud_disabled"
    http_status = 403
    openai_type = "permission_error"
    should_retry = False


class StreamInterrupted(CloudError):
    """The upstream's stream broke after content had been sent."""

    code = "stream_interrupted"


class SettingsError(MlxdError):
    """A change of settings is refused; the file and the live settings are as before."""

    code = "settings.refused"
    http_status = 400
    openai_type = "invalid_request_error"
    exit_code = EXIT_INVALID


class UnknownSetting(SettingsError):
    """No setting has this key; the message names the nearest."""

    code = "settings.unknown"


class InvalidValue(SettingsError):
    """The value is not of the kind, or outside the bounds, that the message states."""

    code = "settings.invalid_value"


class FileInvalid(SettingsError):
    """The file on disk does not parse or validate; names file:line:col."""

    code = "config.file_invalid"
    http_status = 503
    openai_type = "server_error"


class Conflict(SettingsError):
    """The settings moved on since the caller looked (`if_gen`)."""

    code = "config.conflict"
    exit_code = EXIT_CONFLICT


class InsufficientCapacity(SettingsError):
    """The new limit is below what pins or the preload list need."""

    code = "pool.insufficient_capacity"
    exit_code = EXIT_CAPACITY


class CommitFailed(SettingsError):
    """The file could not be written (disk full, permission, busy); nothing changed."""

    code = "config.commit_failed"
    exit_code = EXIT_OTHER


class ProtocolError(MlxdError):
    """The peer broke the framing or speaks no common version."""

    code = "protocol.error"
    http_status = 400
    exit_code = EXIT_PROTOCOL


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
