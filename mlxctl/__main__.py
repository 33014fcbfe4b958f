"""The process `mlxctl`, also `python -m mlxctl`: starts fast and ends fast; all that it does is in `cli.py`."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process and end it with the exit status."""
    # Collecting while modules are imported is 5 % of a `mlxctl status`, and no command lives long enough to need it.
    gc.disable()
    # msgspec looks for it first, and takes `typing` where it is missing: a tenth of a verb that knows the settings.
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    try:
        from mlxctl import cli

        status = cli.main(sys.argv[1:])
    except KeyboardInterrupt:  # Ctrl-C while the program was still being loaded
        status = 130
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # the shell closed it: `mlxctl start >&-`
            continue
        with contextlib.suppress(OSError):  # nobody reads it any more
            stream.flush()
    # Taking the interpreter apart costs a tenth of a `mlxctl status`, and would flush a broken pipe once more, loudly.
    os._exit(status)


if __name__ == "__main__":
    main()
