"""Waiting for an operation: its progress on a terminal, an end to every wait, and Ctrl-C, which leaves it alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from mlxctl import output
from mlxctl.client import Client
from mlxd.protocol.errors import EXIT_INTERRUPTED, EXIT_WAIT_TIMEOUT, ControlError
from mlxd.protocol.units import format_duration

if TYPE_CHECKING:
    from mlxctl.call import Call

# A waiting mlxctl asks again after this long: a silent connection would hide a daemon that hangs.
_WAIT_SLICE_S = 5.0
_LINE_INTERVAL_S = 5.0


def wait_for(call: Call, client: Client, document: Mapping[str, Any], wait_s: float) -> dict[str, Any]:
    """Return the operation `op` of *document* when it has ended.

    Raises:
        ControlError: it failed, as its error says; or *wait_s* ended first (exit 7), and it goes on.
        typer.Exit: Ctrl-C (exit 130): it goes on, and the commands that wait for it or cancel it are printed.
    """
    op: str = document["op"]
    line = ProgressLine(is_shown=not call.options.quiet and not call.options.json)
    try:
        shown = _follow(client, op, wait_s, line)
    except KeyboardInterrupt:
        line.clear()
        output.print_note(f"detached: {op} goes on\n  try: mlxctl op wait {op}\n  try: mlxctl op cancel {op}")
        if call.options.json:
            output.print_json({**document, "detached": True})
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        line.clear()
    if shown.get("state") == "running":
        raise ControlError(
            f"{describe_operation(shown)} did not end within {format_duration(wait_s)}; it goes on",
            exit_code=EXIT_WAIT_TIMEOUT,
            code="op.wait_timeout",
            hint=f"mlxctl op wait {op}\nmlxctl op cancel {op}",
            data={"operation": shown},
        )
    if isinstance(shown.get("error"), Mapping):
        raise ControlError.from_wire(dict(shown["error"]))
    return shown


def _follow(client: Client, op: str, wait_s: float, line: ProgressLine) -> dict[str, Any]:
    """Return the operation as it is at its end, or when *wait_s* has passed."""
    deadline_s = time.monotonic() + wait_s
    while True:
        left_s = max(0.0, min(_WAIT_SLICE_S, deadline_s - time.monotonic()))
        shown = client.request(
            "op.wait",
            {"op": op, "timeout_ms": int(left_s * 1000)},
            timeout_s=left_s + client.timeout_s,
            on_progress=lambda frame: line.update(frame.get("phase"), frame.get("done"), frame.get("total")),
            is_question=True,
        ).result
        if shown.get("state") != "running" or time.monotonic() >= deadline_s:
            return shown


class ProgressLine:
    """Progress: one line on a terminal's stderr that is written over; elsewhere a line now and then, if at all."""

    def __init__(self, *, is_shown: bool = True, is_shown_elsewhere: bool = False) -> None:
        """Show nothing yet; *is_shown_elsewhere*: also where stderr is no terminal."""
        self._is_terminal = is_shown and sys.stderr.isatty()
        self._is_elsewhere = is_shown and is_shown_elsewhere and not self._is_terminal
        self._length = 0
        self._phase: str | None = None
        self._next_s = 0.0

    def update(self, phase: str | None, done: int | None, total: int | None) -> None:
        """Show how far it is; sizes are bytes."""
        text = format_progress(phase, done, total)
        if self._is_terminal:
            print("\r" + text.ljust(self._length), end="", file=sys.stderr, flush=True)
            self._length = len(text)
        elif self._is_elsewhere and (phase != self._phase or time.monotonic() >= self._next_s):
            self._phase, self._next_s = phase, time.monotonic() + _LINE_INTERVAL_S
            output.print_note(text)

    def clear(self) -> None:
        """Take the line away."""
        if self._length:
            print("\r" + " " * self._length + "\r", end="", file=sys.stderr, flush=True)
            self._length = 0


def format_progress(phase: str | None, done: int | None, total: int | None) -> str:
    """Return `loading: 34 % of 2.3 GB (2.1 GiB)`."""
    name = phase or "working"
    if not total or done is None:
        return name
    return f"{name}: {100 * done // total} % of {output.show_size(total)}"


def describe_operation(operation: Mapping[str, Any]) -> str:
    """Return an operation's kind and id."""
    return f"{operation.get('kind', 'operation')} ({operation.get('op') or operation.get('id')})"
