"""Asking the daemon again and again: a page that is drawn over on a terminal, one text after another elsewhere.

A daemon that goes away is waited for: watching a restart is what watching is for. Knows no verb.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from mlxctl import output
from mlxctl.call import Call, Document
from mlxctl.client import Client
from mlxctl.screen import Line, Screen, Style, is_screen
from mlxd.protocol.errors import ControlError
from mlxd.protocol.units import format_duration, parse_duration_s

_SHORTEST_S = 0.1
_QUIT_KEYS = frozenset({"q", "Q", "\x1b", "\x04"})
_LOOK_KEYS = frozenset({" ", "\r", "\n"})
# A daemon that hangs must not freeze the page for long: keys are read between the questions.
_ANSWER_TIMEOUT_S = 3.0

# document, the one before, columns, rows (None: as many as it takes) → lines
Render = Callable[[Mapping[str, Any], Mapping[str, Any] | None, int, int | None], list[Line]]

Interval = Annotated[
    str, typer.Option("--interval", metavar="DURATION", help="Time between two looks, 100ms at least.")
]
Count = Annotated[int | None, typer.Option("--count", min=1, metavar="N", help="End after N looks.")]


@dataclass(frozen=True, slots=True)
class Pace:
    """How often to look, and how many times; None is without end."""

    interval_s: float
    count: int | None

    @classmethod
    def parse(cls, interval: str, count: int | None) -> Pace:
        """Return the pace that the options say.

        Raises:
            typer.BadParameter: the interval is no duration, or too short.
        """
        try:
            interval_s = parse_duration_s(interval)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        if interval_s < _SHORTEST_S:
            raise typer.BadParameter(
                f"--interval {interval} is out of bounds; it must be at least {format_duration(_SHORTEST_S)}"
            )
        return cls(interval_s, count)


def watch(call: Call, operation: str, render: Render, pace: Pace) -> None:
    """Show the answers to *operation*, until a key, Ctrl-C or the count says that it is enough.

    Raises:
        ControlError: there is no daemon at the start, or elsewhere than on a terminal, at any time.
    """
    timeout_s = min(_ANSWER_TIMEOUT_S, call.options.timeout_s)

    def look() -> Document:
        with Client(call.socket, timeout_s) as client:
            return client.request(operation).result

    document = call.ask(operation)
    if call.options.json or not is_screen():
        _print(call, document, look, render, pace)
    else:
        _draw(document, look, render, pace)


def _print(call: Call, document: Document, look: Callable[[], Document], render: Render, pace: Pace) -> None:
    before = None
    for number in itertools.count(1):
        if call.options.json:
            output.print_json_line(document)
        else:
            width = output.terminal_width()
            lines = render(document, before, 10_000 if width is None else width, None)
            if before is not None:
                output.print_text("")
            output.print_text("\n".join(line.text for line in lines))
        if number == pace.count:
            return
        time.sleep(pace.interval_s)
        document, before = look(), document


def _draw(document: Document, look: Callable[[], Document], render: Render, pace: Pace) -> None:
    before, looks = None, 1
    trouble: list[Line] = []
    footer = Line(f"q quits, space looks now; a look every {format_duration(pace.interval_s)}", Style.DIM)
    with Screen() as screen:
        while True:
            next_s = time.monotonic() + pace.interval_s
            key: str | None = ""
            while key is not None and key not in _LOOK_KEYS:
                columns, rows = screen.size
                left = rows - len(trouble) - 1
                page = render(document, before, columns, max(1, left))[: max(0, left)]
                screen.draw([*trouble, *page, *[Line("")] * (left - len(page)), footer])
                key = screen.wait(next_s - time.monotonic())
                if key in _QUIT_KEYS:
                    return
            if looks == pace.count:
                return
            try:
                document, before, trouble = look(), document, []
                looks += 1
            except ControlError as error:
                what = (
                    "the daemon does not answer" if error.code == "control.timeout" else error.message.splitlines()[0]
                )
                trouble = [Line(f"not connected, trying again: {what}", Style.ALERT)]
