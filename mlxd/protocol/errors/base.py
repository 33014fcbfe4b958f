"""The exit statuses, and the base of all errors: a message, a stable code, and what each renderer needs."""

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
