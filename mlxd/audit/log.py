"""`AuditLog`: what the rest of the daemon knows of the request log. A settings participant. Used on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from mlxd.audit.query import Filter, Page, read_page, read_stats
from mlxd.audit.record import ChangeRecord, Record, RequestRecord
from mlxd.audit.retention import Limits
from mlxd.audit.schema import is_broken, open_for_reading
from mlxd.audit.writer import QUEUE_ROWS, Writer
from mlxd.protocol.errors import LogUnavailable
from mlxd.protocol.settings import AuditSettings, Settings

T = TypeVar("T")
# A question waits that long for the rows before it, so that it sees what has ended.
_FLUSH_S = 2.0


class AuditLog:
    """Takes rows, hands them to the writer and to who listens, and answers questions."""

    def __init__(
        self,
        path: Path,
        settings: AuditSettings,
        publish: Callable[[str, Mapping[str, Any]], None] = lambda *_: None,
        *,
        queue_rows: int = QUEUE_ROWS,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take the file, the settings in force, and who is told (kind, row); nothing is opened before `start`."""
        self._settings = settings
        self._publish = publish
        self._path = path
        self._writer = Writer(path, _limits(settings), queue_rows=queue_rows, now=now)

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Write what is queued and end."""
        await asyncio.to_thread(self._writer.close)

    def note_request(self, record: RequestRecord) -> None:
        """Take a request that has ended."""
        self._note("audit.request", record)

    def note_change(self, record: ChangeRecord) -> None:
        """Take a change."""
        self._note("audit.change", record)

    def _note(self, kind: str, record: Record) -> None:
        if self._settings.enabled:
            self._writer.put(record)
            self._publish(kind, record.describe())

    def status(self) -> dict[str, Any]:
        """Return {enabled, problem, queued, written, dropped, size_bytes}; dropped rows are lost."""
        state = self._writer.state
        return {
            "enabled": self._settings.enabled,
            "problem": state.problem,
            "queued": state.queued,
            "written": state.written,
            "dropped": state.dropped,
            "size_bytes": state.size_bytes,
        }

    async def read_page(
        self, kind: type[Record], chosen: Filter, *, limit: int, cursor: str | None, oldest_first: bool
    ) -> Page:
        """Return a page of rows; see `query.read_page`.

        Raises:
            InvalidRequest: the cursor is none.
            LogUnavailable: the file cannot be read now.
        """
        return await self._ask(
            lambda connection: read_page(
                connection, kind, chosen, limit=limit, cursor=cursor, oldest_first=oldest_first
            )
        )

    async def read_stats(self, chosen: Filter) -> dict[str, Any]:
        """Return sums and percentiles; see `query.read_stats`.

        Raises:
            LogUnavailable: the file cannot be read now.
        """
        return await self._ask(lambda connection: read_stats(connection, chosen))

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.to_thread(self._ask_here, question)

    def _ask_here(self, question: Callable[[sqlite3.Connection], T]) -> T:
        self._writer.flush(_FLUSH_S)
        try:
            with contextlib.closing(open_for_reading(self._path)) as connection:
                return question(connection)
        except sqlite3.Error as error:
            if is_broken(error):
                self._writer.check()
            raise LogUnavailable(
                f"the request log {self._path.name} cannot be read: {error}", hint="mlxctl status"
            ) from error

    def apply(self, new: Settings) -> None:
        """Follow the settings; what is too old or too much now goes in the background."""
        self._settings = new.audit
        self._writer.set_limits(_limits(new.audit))


def _limits(settings: AuditSettings) -> Limits:
    return Limits(settings.max_age, settings.max_size)
