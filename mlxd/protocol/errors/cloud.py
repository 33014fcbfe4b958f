"""An upstream failed. The whole tree is drawn in the package."""

from __future__ import annotations

from mlxd.protocol.errors.base import MlxdError


class CloudError(MlxdError):
    """An upstream server failed."""

    code = "upstream_error"
    http_status = 502


class UpstreamUnreachable(CloudError):
    """No connection to the upstream could be made: nothing was sent."""

    code = "upstream_unreachable"


class UpstreamBroke(CloudError):
    """The connection broke after the request was sent: the upstream may have answered it, and may charge for it."""

    code = "upstream_broke"


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


class BudgetExceeded(CloudError):
    """The day's budget for the cloud has no room for the request."""

    code = "budget_exceeded"
    http_status = 429
    openai_type = "insufficient_quota"
    should_retry = False


class BreakerOpen(CloudError):
    """The target has failed too often; it is not asked for a while."""

    code = "breaker_open"
    http_status = 503
