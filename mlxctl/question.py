"""A question before something is destroyed: asked on a terminal, answered by `--yes` elsewhere."""

from __future__ import annotations

import sys

import typer

from mlxd.protocol.errors import EXIT_USAGE, ControlError


def confirm(question: str, *, yes: bool) -> None:
    """Return when the answer is yes.

    Raises:
        ControlError: nobody can be asked.
        typer.Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ControlError(
            f"{question} Nobody is there to answer.", exit_code=EXIT_USAGE, code="usage", hint="the same with --yes"
        )
    typer.confirm(question, abort=True, err=True)
