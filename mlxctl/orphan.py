"""A daemon whose home is gone, and with it its lock and its socket: it is found among the processes of this account."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from mlxctl.supervisor import is_mac
from mlxd.protocol.paths import Home

_COMMAND = re.compile(r"(?:^|/)mlxd$")
_PROCESSES = Path("/proc")


def find_orphan(home: Home, processes: Path = _PROCESSES) -> int | None:
    """Return the process id of an mlxd that was started with *home*; None when there is none, or nobody can tell."""
    words = _list_darwin() if is_mac() else _list_linux(processes)
    return next((pid for pid, said in words if is_daemon_of(home, said)), None)


def is_daemon_of(home: Home, words: list[str]) -> bool:
    """Tell whether a process is mlxd with this home, by the *words* of its command line and its environment."""
    command, environment = _split(words)
    is_module = any(first == "-m" and second == "mlxd" for first, second in pairwise(command))
    if not is_module and not any(_COMMAND.search(word) for word in command[:2]):
        return False
    given = dict(word.split("=", 1) for word in environment)
    root = given.get("MLXD_HOME") or f"{given.get('HOME', '')}/.mlxd"
    return Path(root) == home.root


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the command line and the environment, which begins with the first word that sets a variable."""
    variables = [number for number, word in enumerate(words) if re.match(r"[A-Za-z_][A-Za-z0-9_]*=", word)]
    start = variables[0] if variables else len(words)
    return words[:start], [words[number] for number in variables]


def _list_linux(processes: Path) -> Iterator[tuple[int, list[str]]]:
    for folder in processes.glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.geteuid():
                raw = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                yield int(folder.name), os.fsdecode(raw).split("\0")
        except OSError:  # it has ended meanwhile, or is of another account
            continue


def _list_darwin() -> Iterator[tuple[int, list[str]]]:
    # -E shows the environment after the command line.
    try:
        done = subprocess.run(
            ["/bin/ps", "-xww", "-E", "-o", "pid=,command="], capture_output=True, text=True, check=False
        )
    except OSError:
        return
    for line in done.stdout.splitlines():
        pid, *words = line.split()
        yield int(pid), words
