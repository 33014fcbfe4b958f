"""The control connection is at fault, or mlxctl tells what came over it. The whole tree is drawn in the package."""

from __future__ import annotations

from typing import Any

from mlxd.protocol.errors.base import EXIT_OTHER, EXIT_PROTOCOL, MlxdError


class ProtocolError(MlxdError):
    """The peer broke the framing or speaks no common version."""

    code = "protocol.error"
    http_status = 400
    exit_code = EXIT_PROTOCOL


class LogUnavailable(MlxdError):
    """The request log cannot be read now."""

    code = "audit.unavailable"
    http_status = 503


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
