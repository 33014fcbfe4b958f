"""The machine is short of something (429, 503, 507). The whole tree is drawn in the package."""

from __future__ import annotations

from mlxd.protocol.errors.base import EXIT_CAPACITY, EXIT_WAIT_TIMEOUT, MlxdError


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


class TooManyBodies(CapacityError):
    """The bodies of running requests take as much memory as `http.bodies_memory` allows."""

    code = "too_many_bodies"


class TooManyConnections(CapacityError):
    """As many connections are open as `http.max_connections` allows."""

    code = "too_many_connections"


class WaitEnded(CapacityError):
    """A deadline came before what was waited for; the message says whether that goes on."""

    code = "wait_ended"
    exit_code = EXIT_WAIT_TIMEOUT
