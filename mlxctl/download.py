"""`python -m mlxd.download` as a child: its progress on the terminal, its errors as ours.

The child has the user's environment (token, proxy, pip's settings), so that nothing of it goes through the daemon.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlxd
from mlxctl.call import Call, Document
from mlxctl.wait import ProgressLine
from mlxd.protocol.errors import EXIT_OTHER, EXIT_UNREACHABLE, ControlError


def run(call: Call, arguments: Sequence[str]) -> Document:
    """Let the download program fetch or import a model, tell a running daemon of it, and return {id, path, already}.

    Raises:
        ControlError: as the download program failed.
    """
    command = [sys.executable, "-m", "mlxd.download", *arguments]
    folder = Path(mlxd.__file__).parent.parent  # -m puts it first on the path, so that it is this very mlxd
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # Ctrl-C comes to it once, from here: a second would hit it while it clears up
    ) as child:
        try:
            last = _follow(call, child)
        except BaseException:
            child.terminate()  # it takes away what is half-made
            child.wait()
            raise
    if last.get("event") == "done":
        _rescan(call)
        return {key: value for key, value in last.items() if key != "event"}
    if last.get("event") == "error":
        raise ControlError.from_wire(last)
    raise ControlError(
        f"the download program ended with status {child.returncode}", exit_code=EXIT_OTHER, code="download.failed"
    )


def _follow(call: Call, child: subprocess.Popen[str]) -> dict[str, Any]:
    """Show what the child says until it ends, and return the last that it said."""
    line = ProgressLine(is_shown=not call.options.quiet, is_shown_elsewhere=True)
    event: dict[str, Any] = {}
    assert child.stdout is not None  # noqa: S101  (asked for with PIPE)
    try:
        for said in child.stdout:
            event = json.loads(said)
            if event["event"] == "progress":
                line.update(event["phase"], event["done"], event["total"])
            elif event["event"] == "note":
                line.clear()
                call.note(f"note: {event['msg']}")
    finally:
        line.clear()
    return event


def _rescan(call: Call) -> None:
    try:
        with call.connect() as daemon:
            daemon.request("catalog.rescan")
    except ControlError as error:
        if error.exit_code != EXIT_UNREACHABLE:  # without a daemon there is nothing to tell
            raise
