"""The one writer: a thread that takes rows from a bounded queue and writes them in batches.

Whatever is wrong with the file, serving goes on: rows wait in the queue while it is tried again, and what does not fit
is counted. A file that is no database, or a broken one, is moved aside and begun anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxd.audit import retention
from mlxd.audit.age import AgeClock, read_steady_s
from mlxd.audit.record import ChangeRecord, Record, RequestRecord
from mlxd.audit.retention import Limits
from mlxd.audit.schema import TooNewError, is_broken, open_for_writing

QUEUE_ROWS = 10_000
BATCH_ROWS = 1000
# Rows that come within it are written together.
BATCH_S = 0.1
_RETRY_S = (1.0, 5.0)  # the first pause after a failure, and the longest: a full disk may have room for a moment only
# How often the age of rows is looked at, and after how many rows the size.
_KEEP_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WriterState:
    """What `status` shows.

    Attributes:
        problem: why rows cannot be written now.
        queued: rows that are not written yet.
        written: since the daemon began.
        dropped: rows that were lost since then.
        size_bytes: of the database; None before it was opened.
    """

    problem: str | None
    queued: int
    written: int
    dropped: int
    size_bytes: int | None


class Writer:
    """The thread, its queue and its connection."""

    def __init__(
        self,
        path: Path,
        limits: Limits,
        *,
        queue_rows: int = QUEUE_ROWS,
        now: Callable[[], float] = time.time,
        steady: Callable[[], float] = read_steady_s,
        retry_s: tuple[float, float] = _RETRY_S,
    ) -> None:
        """Take the file and what is kept in it; the thread begins with `start`."""
        self.path = path
        self._limits = limits
        self._queue_rows = queue_rows
        self._now = now
        self._age_clock = AgeClock(now, steady)
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._queue: deque[Record] = deque()
        self._is_closing = False
        self._is_hurried = False  # somebody waits for what is queued
        self._is_checking = False  # a reader met a broken page
        self._under_way: int | None = None  # rows of the round that runs
        self._problem: str | None = None
        self._written = self._dropped = self._rounds = 0
        self._size_bytes: int | None = None
        # The thread's own.
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._pause_s = retry_s[0]
        self._kept_s = 0.0
        self._committed = 0  # rows of the round's batch that are in the file, whatever went wrong after them
        self._unchecked_rows = 0
        self._has_more_to_delete = True
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a row; when the queue is full it is dropped and counted. Never waits."""
        with self._changed:
            if self._is_closing or len(self._queue) >= self._queue_rows:
                self._dropped += 1
                return
            self._queue.append(record)
            if len(self._queue) == 1:
                self._changed.notify_all()

    def set_limits(self, limits: Limits) -> None:
        """Keep that much from now on."""
        with self._changed:
            self._limits = limits
            self._has_more_to_delete = True
            self._changed.notify_all()

    def check(self) -> None:
        """Have the file looked through: a reader found it broken."""
        with self._changed:
            self._is_checking = True
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until what is queued is written and what is too much is deleted; False when that does not succeed."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            first = self._rounds
            while self._has_work or self._under_way is not None:
                left_s = deadline_s - time.monotonic()
                # One round may have been under way: what two could not do waits for the disk.
                is_hopeless = self._problem is not None and self._rounds >= first + 2
                if left_s <= 0 or is_hopeless or not self._thread.is_alive():
                    return False
                self._is_hurried = True
                self._changed.notify_all()
                self._changed.wait(left_s)
            return True

    @property
    def _has_work(self) -> bool:
        return bool(self._queue) or self._is_checking or self._has_more_to_delete

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, if it can be, and end."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def state(self) -> WriterState:
        """A snapshot."""
        with self._changed:
            problem = self._problem
            if self._thread.ident is not None and not self._thread.is_alive() and not self._is_closing:
                problem = "the thread that writes it has died, the daemon's log says of what: mlxctl restart"
            return WriterState(
                problem, len(self._queue) + (self._under_way or 0), self._written, self._dropped, self._size_bytes
            )

    def _run(self) -> None:
        while True:
            batch, is_last = self._next_batch()
            error = self._work(batch)
            with self._changed:
                self._written += self._committed
                if error is None:
                    self._problem, self._pause_s = None, self._retry_s[0]
                else:
                    self._keep_for_later(batch[self._committed :], error)
                self._rounds += 1
                self._under_way = None
                self._changed.notify_all()
                if is_last and (error is not None or not self._queue):
                    self._dropped += len(self._queue)
                    self._queue.clear()
                    break
        self._disconnect()

    def _next_batch(self) -> tuple[list[Record], bool]:
        """Wait for work and return rows to write, maybe none, and whether the end has come."""
        with self._changed:
            if self._problem is not None and not self._is_closing and not self._is_hurried:
                self._changed.wait(self._pause_s)
                self._pause_s = min(2 * self._pause_s, self._retry_s[1])
            elif not self._has_work and not self._is_closing:
                self._changed.wait_for(lambda: self._has_work or self._is_closing, _KEEP_S)
                self._changed.wait_for(lambda: self._is_hurried or self._is_closing, BATCH_S)
            self._is_hurried = False
            self._under_way = min(len(self._queue), BATCH_ROWS)
            return [self._queue.popleft() for _ in range(self._under_way)], self._is_closing

    def _keep_for_later(self, batch: list[Record], error: str) -> None:
        """Put the rows back, in their order, as far as there is room."""
        room = max(0, self._queue_rows - len(self._queue))
        self._dropped += max(0, len(batch) - room)
        self._queue.extendleft(reversed(batch[len(batch) - min(room, len(batch)) :]))
        if self._problem != error:
            _log.warning("the request log cannot be written: %s; serving goes on", error)
        self._problem = error

    def _work(self, batch: list[Record], *, is_anew: bool = False) -> str | None:
        """Write the rows and look after what is kept; return what went wrong, in words."""
        self._committed = 0
        is_checking, self._is_checking = self._is_checking, False
        if is_checking:
            self._disconnect()  # this one may have in its cache what is broken on the disk
        try:
            connection = self._connect()
            if is_checking and connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise _broken()
            if batch:
                self._write(connection, batch)
                self._committed = len(batch)
            self._keep(connection, len(batch))
        except TooNewError as error:
            self._disconnect()
            return str(error)
        except sqlite3.Error as error:
            self._disconnect()
            if is_anew or not (is_broken(error) or "malformed" in str(error)):
                return f"{self.path.name}: {error}"
            return self._move_aside(error) or self._work(batch, is_anew=True)
        except OSError as error:
            self._disconnect()
            return f"{self.path.name}: {error.strerror}"
        return None

    def _connect(self) -> sqlite3.Connection:
        """Return the connection; a file that was moved away or replaced is opened anew."""
        if self._connection is not None and self._identity == _identify(self.path):
            return self._connection
        self._disconnect()
        self._connection = open_for_writing(self.path)
        self._identity = _identify(self.path)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                _log.debug("the request log was not closed in order: %s", error)

    def _write(self, connection: sqlite3.Connection, batch: list[Record]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            for kind in (RequestRecord, ChangeRecord):
                rows = [record.values() for record in batch if isinstance(record, kind)]
                if rows:
                    names = kind.columns()
                    marks = ", ".join("?" * len(names))
                    # Names of ours; what clients sent is bound.
                    statement = f"INSERT INTO {kind.table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608
                    connection.executemany(statement, rows)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _keep(self, connection: sqlite3.Connection, rows: int) -> None:
        """Delete what is too old or too much, when it is time to look."""
        self._unchecked_rows += rows
        now_s = time.monotonic()
        is_due = now_s - self._kept_s >= _KEEP_S or self._unchecked_rows >= retention.STEP_ROWS
        if not (self._has_more_to_delete or is_due):
            return
        self._kept_s, self._unchecked_rows = now_s, 0
        with self._changed:
            limits, self._has_more_to_delete = self._limits, False
        has_more = True  # what could not be deleted is tried again
        size_bytes = self._size_bytes
        try:
            has_more = retention.step(connection, limits, self._age_clock.read_ms(connection))
            size_bytes = retention.file_bytes(connection)
        finally:
            with self._changed:
                self._has_more_to_delete |= has_more
                self._size_bytes = size_bytes

    def _move_aside(self, error: sqlite3.Error) -> str | None:
        """Put the file away, so that a new one can be begun; return why it could not be."""
        aside = self.path.with_name(
            f"{self.path.name}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(self._now()))}"
        )
        try:
            for ending in ("", "-wal", "-shm"):
                if os.path.exists(f"{self.path}{ending}"):  # noqa: PTH110  (a path with an ending)
                    os.replace(f"{self.path}{ending}", f"{aside}{ending}")  # noqa: PTH105
        except OSError as failure:
            return f"{self.path.name} is broken ({error}) and cannot be moved aside: {failure.strerror}"
        _log.warning("%s is broken (%s): it was moved aside to %s, and a new one is begun", self.path, error, aside)
        return None


def _broken() -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError("database disk image is malformed")


def _identify(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
