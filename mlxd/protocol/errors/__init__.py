"""The exceptions both programs agree on.

* MlxdError
  x RequestError                 the client's request is at fault (4xx)
    + InvalidRequest             400 invalid_request, names the field
      - UnsupportedParameter     400 unsupported_parameter
      - ContextLengthExceeded    400 context_length_exceeded
      - MalformedRequest         400 malformed_request, or the status that says why: 414, 415, 417, 431
    + Unauthenticated            401 authentication_error
    + Forbidden                  403 forbidden
    + RequestTimedOut            408 request_timeout
    + InUse                      409 in_use: a loaded model's files, a running operation
    + NotFound                   404 not_found
      - ModelNotFound            404 model_not_found, with the nearest names
    + MethodNotAllowed           405 method_not_allowed
    + PayloadTooLarge            413 payload_too_large
    + UnsupportedMediaType       415 unsupported_media_type
    + RateLimited                429 rate_limited
  x CapacityError                the machine is short of something
    + QueueFull                  429 queue_full
    + QueueTimeout               503 queue_timeout
    + LoadTimeout                503 load_timeout
    + Draining                   503 draining
    + ModelUnloaded              503 model_unloaded
    + DoesNotFit                 507 does_not_fit
    + TooManyBodies              503 too_many_bodies
    + TooManyConnections         503 too_many_connections
    + WaitEnded                  exit 7: a deadline came before what was waited for
  x EngineError                  MLX or mlx-lm failed (500)
    + LoadFailed                 500 load_failed
    + OutOfMemory                500 oom
    + GenerationFailed           500 error
    + TemplateFailed             500 template_failed: a chat template without end
    + FirstTokenTimeout          504 first_token_timeout
    + RequestCancelled           499 cancelled by an operator
  x CloudError                   an upstream failed
    + UpstreamUnreachable        502 upstream_unreachable: nothing was sent
    + UpstreamBroke              502 upstream_broke: the request may have been answered
    + UpstreamTimeout            504 upstream_timeout
    + UpstreamError              the upstream's own status, 502 when it has none
    + AuthFailed                 502 auth_failed
    + SecretMissing              502 secret_missing
    + CloudDisabled              403 cloud_disabled
    + BudgetExceeded             429 budget_exceeded
    + BreakerOpen                503 breaker_open
    + StreamInterrupted          502 stream_interrupted
  x SettingsError                a change of settings is refused
    + UnknownSetting             settings.unknown
    + InvalidValue               settings.invalid_value, names key and bound
    + FileInvalid                config.file_invalid, names file:line:col
    | + FileMissing              config.file_missing: its folder is gone
    + Conflict                   config.conflict
    + InsufficientCapacity       exit 6: pinned models, preload sum, ...
    + CommitFailed               config.commit_failed: disk full, permission, ...
  x LogUnavailable               audit.unavailable: the request log cannot be read now
  x ProtocolError                the control connection broke the rules
  x ControlError                 mlxctl only: an error as it was received, or no daemon to be reached

Code, HTTP status, OpenAI type, exit status and retryability sit on the class. There are two renderers of these: the
HTTP envelope (`openai/errors.py`) and the control reply (`to_wire`).
"""

from __future__ import annotations

from mlxd.protocol.errors.base import (
    EXIT_CAPACITY,
    EXIT_CONFLICT,
    EXIT_DENIED,
    EXIT_INTERRUPTED,
    EXIT_INVALID,
    EXIT_NOT_FOUND,
    EXIT_OK,
    EXIT_OTHER,
    EXIT_PROTOCOL,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    EXIT_WAIT_TIMEOUT,
    MlxdError,
)
from mlxd.protocol.errors.capacity import (
    CapacityError,
    DoesNotFit,
    Draining,
    LoadTimeout,
    ModelUnloaded,
    QueueFull,
    QueueTimeout,
    TooManyBodies,
    TooManyConnections,
    WaitEnded,
)
from mlxd.protocol.errors.cloud import (
    AuthFailed,
    BreakerOpen,
    BudgetExceeded,
    CloudDisabled,
    CloudError,
    SecretMissing,
    StreamInterrupted,
    UpstreamBroke,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mlxd.protocol.errors.control import (
    ControlError,
    LogUnavailable,
    ProtocolError,
)
from mlxd.protocol.errors.engine import (
    EngineError,
    FirstTokenTimeout,
    GenerationFailed,
    LoadFailed,
    OutOfMemory,
    RequestCancelled,
    TemplateFailed,
)
from mlxd.protocol.errors.request import (
    ContextLengthExceeded,
    Forbidden,
    InUse,
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    RequestError,
    RequestTimedOut,
    Unauthenticated,
    UnsupportedMediaType,
    UnsupportedParameter,
)
from mlxd.protocol.errors.settings import (
    CommitFailed,
    Conflict,
    FileInvalid,
    FileMissing,
    InsufficientCapacity,
    InvalidValue,
    SettingsError,
    UnknownSetting,
)

__all__ = [
    "EXIT_CAPACITY",
    "EXIT_CONFLICT",
    "EXIT_DENIED",
    "EXIT_INTERRUPTED",
    "EXIT_INVALID",
    "EXIT_NOT_FOUND",
    "EXIT_OK",
    "EXIT_OTHER",
    "EXIT_PROTOCOL",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "EXIT_WAIT_TIMEOUT",
    "AuthFailed",
    "BreakerOpen",
    "BudgetExceeded",
    "CapacityError",
    "CloudDisabled",
    "CloudError",
    "CommitFailed",
    "Conflict",
    "ContextLengthExceeded",
    "ControlError",
    "DoesNotFit",
    "Draining",
    "EngineError",
    "FileInvalid",
    "FileMissing",
    "FirstTokenTimeout",
    "Forbidden",
    "GenerationFailed",
    "InUse",
    "InsufficientCapacity",
    "InvalidRequest",
    "InvalidValue",
    "LoadFailed",
    "LoadTimeout",
    "LogUnavailable",
    "MalformedRequest",
    "MethodNotAllowed",
    "MlxdError",
    "ModelNotFound",
    "ModelUnloaded",
    "NotFound",
    "OutOfMemory",
    "PayloadTooLarge",
    "ProtocolError",
    "QueueFull",
    "QueueTimeout",
    "RateLimited",
    "RequestCancelled",
    "RequestError",
    "RequestTimedOut",
    "SecretMissing",
    "SettingsError",
    "StreamInterrupted",
    "TemplateFailed",
    "TooManyBodies",
    "TooManyConnections",
    "Unauthenticated",
    "UnknownSetting",
    "UnsupportedMediaType",
    "UnsupportedParameter",
    "UpstreamBroke",
    "UpstreamError",
    "UpstreamTimeout",
    "UpstreamUnreachable",
    "WaitEnded",
]
