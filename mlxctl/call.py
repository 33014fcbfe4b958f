"""One call of mlxctl: its options, its connection to the daemon, and what it prints.

Every verb goes through `Call`, so that `--json`, `-q`, `--timeout`, `--wait` and the rest mean the same everywhere.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from mlxctl import output
from mlxctl.client import Client, Reply, Terms
from mlxctl.connect import ABSENT
from mlxctl.verb import Options, usage_error
from mlxctl.wait import wait_for
from mlxd import __version__
from mlxd.protocol.errors import EXIT_INVALID, ControlError
from mlxd.protocol.paths import Home

if TYPE_CHECKING:
    from mlxctl.lock import Unreachable

Document = dict[str, Any]

# Of the idempotency key: enough that two commands never share one.
_KEY_BYTES = 16


def without_none(**values: object) -> Document:
    """Return the params that were given."""
    return {name: value for name, value in values.items() if value is not None}


def confirm(question: str, *, yes: bool) -> None:
    """Return when the answer is yes, before something is destroyed: asked on a terminal, given by `--yes` elsewhere.

    Raises:
        ControlError: nobody can be asked.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise usage_error(f"{question} Nobody is there to answer.", "the same with --yes")
    typer.confirm(question, abort=True, err=True)


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
            found = self.find_unreachable() if error.code in ABSENT else None
            raise error if found is None else found.error from None
        if client.version != __version__:
            self.note(f"note: {__version__} installed, {client.version} running: mlxctl restart")
        return client

    def find_unreachable(self) -> Unreachable | None:
        """Return the daemon that runs although none answers at the socket; None when none runs."""
        from mlxctl.lock import find_unreachable  # late: it is about what is wrong

        return find_unreachable(self.home, self.socket, is_usual_socket=self.options.socket is None)

    def ask(self, operation: str, **params: Any) -> Document:
        """Return the daemon's answer to a question."""
        with self.connect() as client:
            return client.request(operation, params, is_question=True).result

    def ask_all(self, operation: str, name: str, **params: Any) -> Document:
        """Return the daemon's answer to a question for the list *name*, its pages put together."""
        with self.connect() as client:
            document = client.request(operation, params, is_question=True).result
            cursor = document.pop("next", None)
            while cursor is not None:
                page = client.request(operation, {**params, "cursor": cursor}, is_question=True).result
                document[name] += page[name]
                cursor = page.get("next")
        return document

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
                document["operation"] = wait_for(self, client, document, self.options.wait_s)
                if "memory" in document:  # what it came to, instead of where it began
                    document["memory"] = client.request("pool.show", is_question=True).result["memory"]
        return document

    def _request(self, client: Client, operation: str, params: Document) -> Reply:
        try:
            return client.request(
                operation,
                params,
                Terms(
                    dry=self.options.dry_run,
                    persist=not self.options.runtime_only,
                    if_generation=self.options.if_generation,
                    key=os.urandom(_KEY_BYTES).hex(),
                ),
            )
        except KeyboardInterrupt:
            output.print_note("interrupted before the daemon had answered; it may have been done: mlxctl status")
            raise
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
