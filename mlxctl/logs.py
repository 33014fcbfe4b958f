"""`mlxctl logs`: the end of the daemon's log, and what is added to it, over rotations. Works with no daemon."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, Self

import typer

from mlxctl import output
from mlxctl.call import Call
from mlxctl.client import Client
from mlxctl.verb import Verb, make_app
from mlxd.protocol.errors import EXIT_NOT_FOUND, ControlError

app = make_app("The daemon's log.")

Level = Literal["debug", "info", "warning", "error"]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is added, until Ctrl-C.")]
Least = Annotated[Level, typer.Option("--level", metavar="LEVEL", help="Least severe: debug, info, warning or error.")]
Number = Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many of the last entries; 0 none.")]

_LEVELS = ("debug", "info", "warning", "error", "critical")
# As `mlxd/log.py` writes a line.
_HEAD = re.compile(r"(?P<time>\d{4}-\d\d-\d\dT[\d:.]+Z) (?P<level>[a-z]+) +(?P<message>.*)")
_OLDER = range(1, 10)  # mlxd.log.1 is the youngest of those that were rotated away
_READ_BYTES = 1 << 16
_POLL_S = 0.2
# Whether a daemon writes this file is worth a note and no wait: logs are read when it hangs, too.
_ASK_TIMEOUT_S = 1.0


@app.command("logs", cls=Verb)
def logs(ctx: typer.Context, follow: Follow = False, level: Least = "debug", lines: Number = 50) -> None:
    """The last entries of the daemon's log, and what is added to it.

    A traceback is part of its entry; times are UTC. Reads MLXD_HOME/logs/mlxd.log, and what was rotated away if
    that is needed. With --json it prints a JSON document a line.
    """
    call = Call.of(ctx)
    path = call.home.log
    _note_other_log(call, path)
    try:
        with Follower(path) as follower:
            for record in read_last(path, lines, level, follower.start):
                _print(call, record)
            if follow:
                _follow(call, follower, level)
    except FileNotFoundError:
        raise ControlError(
            f"there is no log: {path} does not exist; a daemon that runs in the foreground logs on its stderr",
            exit_code=EXIT_NOT_FOUND,
            code="logs.none",
            hint="mlxctl start, whose daemon logs there",
        ) from None


def _follow(call: Call, follower: Follower, level: str, sleep: Callable[[float], None] = time.sleep) -> None:
    last = Record("")
    while True:
        for line in follower.read_lines():
            record = parse_line(line)
            last = Record(line, last.level, last.time, line) if record is None else record
            if last.is_at_least(level):
                _print(call, last)
        sleep(_POLL_S)


def _print(call: Call, record: Record) -> None:
    if call.options.json:
        output.print_json_line({"time": record.time, "level": record.level, "message": record.message})
    else:
        output.print_text(record.text)


def _note_other_log(call: Call, path: Path) -> None:
    """Say so when the daemon that runs does not write to *path*."""
    try:
        with Client(call.socket, min(_ASK_TIMEOUT_S, call.options.timeout_s)) as daemon:
            shown = daemon.request("daemon.show").result
    except ControlError:
        return
    if shown["log"] is None:
        call.note(
            f"note: the daemon that runs (pid {shown['pid']}) logs on its stderr; what follows is of earlier ones"
        )
    elif Path(shown["log"]) != path:
        call.note(f"note: the daemon that runs (pid {shown['pid']}) logs to {shown['log']}")


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log with what belongs to it, such as a traceback.

    Attributes:
        text: as it stands in the file.
        level: None for what was written by nobody's log: the last words of a process that could not start.
        time: as it stands in the file, UTC.
        message: the text without time and level.
    """

    text: str
    level: str | None = None
    time: str | None = None
    message: str = ""

    def is_at_least(self, level: str) -> bool:
        """Tell whether it is as severe as *level*; what has no level is always shown."""
        return self.level not in _LEVELS or _LEVELS.index(self.level) >= _LEVELS.index(level)

    def extended(self, line: str) -> Record:
        """Return this record with one more line."""
        return Record(f"{self.text}\n{line}", self.level, self.time, f"{self.message}\n{line}")


def parse_line(line: str) -> Record | None:
    """Return the record that the line begins; None when it belongs to the one before."""
    head = _HEAD.fullmatch(line)
    return None if head is None else Record(line, head["level"], head["time"], head["message"])


def group_lines(lines: Iterable[str]) -> Iterator[Record]:
    """Yield the records that the lines make up."""
    pending: Record | None = None
    for line in lines:
        record = parse_line(line)
        if record is None and pending is not None:
            pending = pending.extended(line)
            continue
        if pending is not None:
            yield pending
        pending = Record(line, message=line) if record is None else record
    if pending is not None:
        yield pending


def read_last(path: Path, count: int, level: str, end: int | None = None) -> list[Record]:
    """Return the last *count* records of at least this level, oldest first, also of files that were rotated away.

    Args:
        path: the file that is written now.
        count: how many records.
        level: the least severe to return.
        end: where to end in that file, in bytes; None is its end.

    Raises:
        OSError: there is no log, or it cannot be read.
    """
    if count == 0:
        path.stat()
        return []
    found: list[Record] = []
    for number in (0, *_OLDER):
        older = path if number == 0 else path.with_name(f"{path.name}.{number}")
        if number and not older.exists():
            break
        data = older.read_bytes()
        lines = (data[:end] if number == 0 else data).decode(errors="replace").splitlines()
        found = [record for record in group_lines(lines) if record.is_at_least(level)][-count:] + found
        if len(found) >= count:
            break
    return found[-count:]


class Follower:
    """What is added to the log from now on; a rotation or a truncation loses nothing that was written before it."""

    def __init__(self, path: Path) -> None:
        """Begin at the file's end.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        self._file: BinaryIO = path.open("rb")
        self.start = self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read_lines(self) -> list[str]:
        """Return the whole lines that were added since the last call; none when there are none yet."""
        data = self._rest + self._read()
        if self._is_replaced():
            data += self._read()  # between the read and the look
            self._file.close()
            self._file = self._path.open("rb")
            data += self._read()
        *lines, self._rest = data.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _read(self) -> bytes:
        if os.fstat(self._file.fileno()).st_size < self._file.tell():  # somebody emptied it
            self._file.seek(0)
        return b"".join(iter(lambda: self._file.read(_READ_BYTES), b""))

    def _is_replaced(self) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False  # in the middle of a rotation
        opened = os.fstat(self._file.fileno())
        return (now.st_ino, now.st_dev) != (opened.st_ino, opened.st_dev)
