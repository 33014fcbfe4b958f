"""`daemon.*`: what the process is and sees, for `mlxctl doctor`, as launchd and shells differ; and its end."""

from __future__ import annotations

import os
import resource
import sys

from mlxd.control.context import ControlContext, Reply, Request, handles

# What decides where things are found. Values of other variables may be secrets and are nobody's business.
_SHOWN_VARIABLES = ("PATH", "HOME", "MLXD_HOME", "HF_HOME", "TMPDIR", "LANG")


@handles("daemon.show")
async def show(context: ControlContext, request: Request) -> Reply:  # noqa: ARG001
    """Return the process's files, limits and environment, as far as it can be shown to anybody."""
    info = context.info
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "pid": info.pid,
        "version": info.version,
        "python": sys.executable,
        "home": str(info.home.root),
        "socket": str(info.home.socket if info.socket is None else info.socket),
        "config": str(context.store.path),
        "log": None if info.log is None else str(info.log),
        "usable_bytes": info.usable_bytes,
        "open_files": None if open_files == resource.RLIM_INFINITY else open_files,
        "environment": {name: os.environ[name] for name in _SHOWN_VARIABLES if name in os.environ},
    }


@handles("daemon.stop")
async def stop_daemon(context: ControlContext, request: Request) -> Reply:
    """Begin to shut down; the connection ends when the daemon has."""
    is_now = bool(request.params.get("now", False))
    running = len(context.requests.list())
    context.on_stop(is_now)
    return {"stopping": True, "now": is_now, "requests": running}
