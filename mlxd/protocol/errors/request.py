"""The client's request is at fault (4xx). The whole tree is drawn in the package."""

from __future__ import annotations

from mlxd.protocol.errors.base import EXIT_CAPACITY, EXIT_CONFLICT, EXIT_DENIED, EXIT_INVALID, EXIT_NOT_FOUND, MlxdError


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
    """The prompt is more than the model's context; `data` may have `prompt_tokens` and `context_tokens`."""

    code = "context_length_exceeded"


class MalformedRequest(InvalidRequest):
    """What came is no HTTP request that is read here; `data["status"]` is the status that says why."""

    code = "malformed_request"


class Unauthenticated(RequestError):
    """There are API keys, and the request has none of them."""

    code = "authentication_error"
    http_status = 401
    openai_type = "authentication_error"
    exit_code = EXIT_DENIED


class Forbidden(RequestError):
    """The Host, Origin or peer is not allowed, or the model to this API key."""

    code = "forbidden"
    http_status = 403
    openai_type = "permission_error"
    exit_code = EXIT_DENIED


class RequestTimedOut(RequestError):
    """The headers or the body took longer to come than `http.header_timeout` or `http.body_timeout`."""

    code = "request_timeout"
    http_status = 408


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


class RateLimited(RequestError):
    """The API key has sent too many requests for its rate."""

    code = "rate_limited"
    http_status = 429
    openai_type = "rate_limit_error"
    exit_code = EXIT_CAPACITY
    should_retry = True
