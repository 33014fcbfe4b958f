"""Which rows of the request log are meant: the options that its verbs share, and what they say to the daemon."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from typer.core import TyperOption

from mlxctl.verb import Verb, usage_error
from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.units import parse_duration_s

if TYPE_CHECKING:
    from typer._click import Context

# option → placeholder and help; a placeholder may be the words that there are.
_OPTIONS = {
    **{
        name: (param.word or name.upper(), param.help)
        for name, param in OPERATIONS["audit.stats"].params.items()
        if name not in {"since_ms", "until_ms"}
    },
    "since": ("WHEN", "Begun in the last 2h, or since 2026-01-31T12:00."),
    "until": ("WHEN", "Begun before then."),
}
HELP = "mlxctl audit --help"
_GIVEN = "mlxctl.audit.given"


class FilterVerb(Verb):
    """A verb with the options that choose rows; `read_filter` has what they say."""

    def __init__(self, name: str | None, **attributes: Any) -> None:
        """Add them to the verb's own."""
        super().__init__(name, **attributes)
        options = (
            TyperOption(param_decls=[f"--{name}"], metavar=placeholder, help=text)
            for name, (placeholder, text) in _OPTIONS.items()
        )
        self.params = [*options, *self.params]

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the line, and put them aside."""
        rest = super().parse_args(ctx, args)
        given = {name: ctx.params.pop(name, None) for name in _OPTIONS}
        ctx.meta[_GIVEN] = {name: value for name, value in given.items() if value is not None}
        return rest


def read_filter(meta: dict[str, Any], *, changes: bool = False) -> dict[str, Any]:
    """Return the params of the filters that were given.

    Raises:
        ControlError: a word is none of those that there are, or a filter of requests is given for changes.
    """
    given: dict[str, str] = meta[_GIVEN]
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name in {"since", "until"}:
            chosen[f"{name}_ms"] = parse_moment_ms(value, time.time())
            continue
        if changes:
            raise usage_error(f"--{name} is for requests; changes are chosen by --since and --until", HELP)
        words = _OPTIONS[name][0].split("|")
        if len(words) > 1 and value not in words:
            raise usage_error(f"there is no {name} {value!r}; there are {', '.join(words)}", HELP, f"usage.{name}")
        chosen[name] = value
    return chosen


def parse_moment_ms(text: str, now_s: float) -> int:
    """Return unix ms of `2h` (ago) or of an ISO date and time, in this machine's zone where it names none.

    Raises:
        ControlError: it is neither.
    """
    try:
        return max(0, int((now_s - parse_duration_s(text)) * 1000))
    except (ValueError, OverflowError):
        pass
    try:
        return max(0, int(datetime.fromisoformat(text).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise usage_error(
            f"{text!r} is no time: 2h (ago), 2026-01-31 or 2026-01-31T12:00", HELP, "usage.time"
        ) from None
