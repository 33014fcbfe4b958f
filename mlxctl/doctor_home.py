"""The part of `mlxctl doctor` that needs no daemon: the home folder, who may read it, the disk, the settings file."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxctl.finding import Finding, fail, ok, warn
from mlxctl.lock import find_holder
from mlxctl.output import show_path
from mlxd.protocol.paths import Home
from mlxd.protocol.table import SettingProblem, decode, find_row
from mlxd.protocol.units import show_bytes

# A share of memory is checked as such; how much it comes to does not matter here.
_SOME_BYTES = 10**10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# Below the first a model of any use does not fit any more, below the second neither do logs and settings.
_LITTLE_BYTES, _LEAST_BYTES = 10 * 10**9, 10**9


def check_home(home: Home) -> Iterator[Finding]:
    """Look at the folder and at what in it is nobody else's business."""
    root = show_path(str(home.root))
    try:
        found = home.root.stat()
    except FileNotFoundError:
        yield warn("home", f"{root} does not exist yet", hint="mlxctl start, which makes it")
        return
    except OSError as error:
        yield fail("home", f"{root} cannot be reached: {error.strerror}", hint="another MLXD_HOME")
        return
    if not stat.S_ISDIR(found.st_mode):
        yield fail("home", f"{root} is no folder", hint="another MLXD_HOME")
        return
    yield _check_root(home.root, root, found)
    yield from _check_modes(home)
    usage = shutil.disk_usage(home.root)
    what = f"{show_bytes(usage.free)} free of {show_bytes(usage.total)}"
    if usage.free < _LEAST_BYTES:
        yield fail("disk", what, "settings and logs may not be written any more", "mlxctl model list")
    elif usage.free < _LITTLE_BYTES:
        yield warn("disk", what, "most models do not fit any more", "mlxctl model list")
    else:
        yield ok("disk", what)


def _check_root(path: Path, root: str, found: os.stat_result) -> Finding:
    if found.st_uid != os.geteuid():
        what = f"{root} belongs to another account (user {found.st_uid})"
        return fail(
            "home", what, "the daemon cannot write there, and must not let others read keys", "another MLXD_HOME"
        )
    if found.st_mode & _OTHERS:
        what = f"{root} is open to other accounts (mode {_mode(found)})"
        return fail("home", what, "settings, keys and the control socket are in it", f"chmod 700 {root}")
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor.") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        what = f"a file in {root} cannot be written: {error.strerror or error}"
        hint = "free some disk space, or make the disk writable"
        return fail("home", what, "the daemon can save no setting and write no log", hint)
    return ok("home", f"{root}, mode {_mode(found)}, can be written")


def _check_modes(home: Home) -> Iterator[Finding]:
    secret = [home.api_keys, home.secrets, *sorted(home.secrets.glob("*"))]
    open_ones = [path for path in secret if _has(path, _OTHERS)]
    writable = [path for path in (home.config, home.history, home.logs, home.lock) if _has(path, _OTHERS_WRITE)]
    for path in open_ones:
        shown = show_path(str(path))
        what = f"{shown} can be read by other accounts (mode {_mode(path.stat())})"
        yield fail("secrets", what, hint=f"chmod go= {shown}")
    for path in writable:
        shown = show_path(str(path))
        what = f"{shown} can be written by other accounts (mode {_mode(path.stat())})"
        yield warn("files", what, hint=f"chmod go-w {shown}")
    if not open_ones and not writable:
        yield ok("files", "settings, history, logs and keys are this account's alone")


def check_socket(home: Home, path: Path) -> Iterator[Finding]:
    """Look at the control socket's file."""
    shown = show_path(str(path))
    try:
        found = path.lstat()
    except OSError:
        return  # that no daemon runs is said elsewhere
    if not stat.S_ISSOCK(found.st_mode):
        yield fail("socket", f"{shown} is not a socket", hint=f"move it away: mv {shown} {shown}.old")
    elif found.st_mode & _OTHERS:
        what = f"{shown} is open to other accounts (mode {_mode(found)})"
        why = "only the account that runs mlxd may steer it"
        yield fail("socket", what, why, "mlxctl restart, which makes it anew")
    elif path == home.socket and find_holder(home) is None:
        what = f"{shown} was left behind by a daemon that was killed or has crashed"
        yield warn("socket", what, "the next start replaces it", "mlxctl logs --level warning\nmlxctl start")
    else:
        yield ok("socket", f"{shown}, mode {_mode(found)}")


def check_settings_file(home: Home) -> Iterator[Finding]:
    """Read the settings file as far as that goes without a daemon, and try the port that it names."""
    shown = show_path(str(home.config))
    document: dict[str, Any] = {}
    try:
        with home.config.open("rb") as file:
            document = tomllib.load(file)
        decode(document, _SOME_BYTES)
    except FileNotFoundError:
        kept = [int(path.stem) for path in home.history.glob("*.toml") if path.stem.isdecimal()]
        if kept:
            hint = f"mlxctl start, then mlxctl config rollback {max(kept)}"
            yield warn("settings", f"{shown} was deleted: the defaults hold", hint=hint)
        else:
            yield ok("settings", f"{shown} does not exist: the defaults hold")
    except (OSError, ValueError, SettingProblem) as error:
        why = "the daemon would come up without its settings and serve nothing"
        hint = f"mlxctl config edit, or move it away: mv {shown} {shown}.old"
        yield fail("settings", f"{shown} cannot be used: {error}", why, hint)
        return
    else:
        yield ok("settings", f"{shown} can be used, each value is within its bounds")
    yield from _check_port(document.get("http"))


def _check_port(http: object) -> Iterator[Finding]:
    written = http if isinstance(http, dict) else {}
    host, port = (written.get(name, _default(name)) for name in ("host", "port"))
    if not isinstance(host, str) or not isinstance(port, int) or not 0 <= port <= 65535:
        return  # the daemon words what is wrong with a value
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = "taken by another program" if error.errno == errno.EADDRINUSE else str(error.strerror)
            yield fail("port", f"{host}:{port} is {taken}", hint="http.port in the settings file, then mlxctl start")
            return
    yield ok("port", f"{host}:{port} is free" if port else f"any free port of {host}")


def _default(name: str) -> object:
    found = find_row(("http", name))
    return None if found is None else found.default


def _has(path: Path, bits: int) -> bool:
    try:
        return bool(path.stat().st_mode & bits)
    except OSError:
        return False


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"
