"""One call of mlxctl: its options, its connection to the daemon, and what it prints.

Every verb goes through `Call`, so that `--json`, `-q`, `--timeout`, `--wait` and the rest mean the same everywhere.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mlxctl import output
from mlxctl.client import Client, Reply
from mlxctl.verb import Options
from mlxd import __version__
from mlxd.protocol.errors import EXIT_INVALID, EXIT_UNREACHABLE, EXIT_WAIT_TIMEOUT, ControlError
from mlxd.protocol.paths import Home
from mlxd.protocol.units import format_duration

if TYPE_CHECKING:
    import typer

Document = dict[str, Any]

# A waiting mlxctl asks again after this long: a silent connection would hide a daemon that hangs.
_WAIT_SLICE_S = 5.0


class Call:
    """What a verb has at hand."""

    def __init__(self, options: Options, command: str = "mlxctl") -> None:
        """Take the options and the command as it was called; nothing is opened yet."""
        self.options = options
        self.command = command
        self.home = Home.from_environment()
        self.socket = options.socket if options.socket is not None else self.home.socket

    @classmethod
    def of(cls, ctx: typer.Context) -> Call:
        """Return the call that typer's context stands for."""
        return cls(ctx.obj if isinstance(ctx.obj, Options) else Options(), ctx.command_path)

    def connect(self) -> Client:
        """Return a greeted connection; a daemon of another version is noted.

        Raises:
            ControlError: there is no daemon, or the home's listens elsewhere, or it may not be talked to.
        """
        try:
            client = Client(self.socket, self.options.timeout_s)
        except ControlError as error:
            if error.exit_code == EXIT_UNREACHABLE and self.options.socket is None:
                from mlxctl.lock import find_elsewhere

                raise find_elsewhere(self.home, self.socket) or error from None
            raise
        if client.version != __version__:
            self.note(f"note: {__version__} installed, {client.version} running: mlxctl restart")
        return client

    def ask(self, operation: str, **params: Any) -> Document:
        """Return the daemon's answer to a question."""
        with self.connect() as client:
            return client.request(operation, params).result

    def change(self, operation: str, **params: Any) -> Document:
        """Ask for a change and return what came of it, `operation` included when it was waited for.

        Raises:
            ControlError: as refused; exit 7 when the wait ended first; as the operation failed.
        """
        if self.options.force:
            params["force"] = True
        with self.connect() as client:
            reply = self._request(client, operation, params)
            if reply.ignored:
                self.note(
                    f"note: the running {client.version} does not know {', '.join(reply.ignored)}: mlxctl restart"
                )
            document = dict(reply.result)
            if self.options.wait_s is not None and document.get("op") is not None:
                document["operation"] = self._wait(client, document["op"], self.options.wait_s)
                if "memory" in document:  # what it came to, instead of where it began
                    document["memory"] = client.request("pool.show").result["memory"]
        return document

    def _request(self, client: Client, operation: str, params: Document) -> Reply:
        try:
            return client.request(operation, params, dry=self.options.dry_run, if_generation=self.options.if_generation)
        except ControlError as error:
            if error.hint is None and error.exit_code == EXIT_INVALID:
                error.hint = f"{self.command} --help"
            raise

    def show(self, document: Mapping[str, Any], render: Callable[[Any], str]) -> None:
        """Print the document, as JSON if asked for, else as text."""
        if self.options.json:
            output.print_json(document)
            return
        text = render(document)
        if text:
            output.print_text(text)

    def note(self, text: str) -> None:
        """Say something that is no data, unless `--quiet`."""
        if not self.options.quiet:
            output.print_note(text)

    def _wait(self, client: Client, op: str, wait_s: float) -> Document:
        deadline_s = time.monotonic() + wait_s
        line = ProgressLine(is_shown=not self.options.quiet and not self.options.json)
        try:
            while True:
                left_s = max(0.0, min(_WAIT_SLICE_S, deadline_s - time.monotonic()))
                answer = client.request(
                    "op.wait",
                    {"op": op, "timeout_ms": int(left_s * 1000)},
                    timeout_s=left_s + self.options.timeout_s,
                    on_progress=lambda frame: line.update(frame.get("phase"), frame.get("done"), frame.get("total")),
                ).result
                if answer.get("state") != "running":
                    break
                if time.monotonic() >= deadline_s:
                    raise ControlError(
                        f"{describe_operation(answer)} did not end within {format_duration(wait_s)}; it goes on",
                        exit_code=EXIT_WAIT_TIMEOUT,
                        code="op.wait_timeout",
                        hint="mlxctl ps, or the same with a longer --wait=DURATION",
                        data={"operation": answer},
                    )
        finally:
            line.clear()
        if isinstance(answer.get("error"), Mapping):
            raise ControlError.from_wire(dict(answer["error"]))
        return answer


class ProgressLine:
    """One line on a terminal's stderr that is written over; nothing where stderr is no terminal."""

    def __init__(self, *, is_shown: bool = True) -> None:
        """Show nothing yet."""
        self.is_shown = is_shown and sys.stderr.isatty()
        self._length = 0

    def update(self, phase: str | None, done: int | None, total: int | None) -> None:
        """Show how far it is; sizes are bytes."""
        if not self.is_shown:
            return
        text = format_progress(phase, done, total)
        print("\r" + text.ljust(self._length), end="", file=sys.stderr, flush=True)
        self._length = len(text)

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
