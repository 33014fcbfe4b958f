"""MLX or mlx-lm failed (500). The whole tree is drawn in the package."""

from __future__ import annotations

from mlxd.protocol.errors.base import MlxdError


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


class TemplateFailed(EngineError):
    """The model's chat template does not end, takes too much memory, makes too much text, or crashes."""

    code = "template_failed"
    should_retry = False


class RequestCancelled(EngineError):
    """The request was ended by an operator or by the end of the daemon."""

    code = "cancelled"
    http_status = 499


class FirstTokenTimeout(EngineError):
    """The local model has said nothing within the time that a rule allows it."""

    code = "first_token_timeout"
    http_status = 504
