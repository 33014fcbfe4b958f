"""Delete rows that are too old or too many for the file's size: the oldest first, no more than needed.

One step deletes few rows in a transaction of its own and gives their pages back, so that nothing waits long for it.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass

# Rows of one step. Ten times as many would hold up the rows that come in for a second on a slow disk.
STEP_ROWS = 500
# For the write-ahead log, which is a file beside the database.
RESERVE_BYTES = 4 << 20
# Rows that a step deletes for every row over the size: pages are given back as they become empty.
_STEP_PAGES = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """How long rows are kept, and how large the database and its write-ahead log may be together."""

    age_s: float
    size_bytes: int


def step(connection: sqlite3.Connection, limits: Limits, now_ms: int | None) -> bool:
    """Delete the oldest rows that are too many, a few; return whether there are more to go.

    *now_ms* is None while nobody knows how old they are.
    """
    is_over = False
    if now_ms is not None and math.isfinite(limits.age_s):
        oldest_ms = now_ms - int(limits.age_s * 1000)
        for table in ("requests", "changes"):
            is_over |= _delete(connection, table, STEP_ROWS, before_ms=oldest_ms) == STEP_ROWS
    if used_bytes(connection) > limits.size_bytes - RESERVE_BYTES:
        gone = _delete(connection, "requests", STEP_ROWS) or _delete(connection, "changes", STEP_ROWS)
        is_over |= gone > 0
    # Every row of this statement is a page that is given back: they have to be fetched.
    connection.execute(f"PRAGMA incremental_vacuum({_STEP_PAGES})").fetchall()
    return is_over or (_pragma(connection, "freelist_count") > _STEP_PAGES and is_large(connection, limits))


def is_large(connection: sqlite3.Connection, limits: Limits) -> bool:
    """Tell whether the file, with the pages in it that are free, is over the limit."""
    return file_bytes(connection) > limits.size_bytes - RESERVE_BYTES


def file_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the database file."""
    return _pragma(connection, "page_count") * _pragma(connection, "page_size")


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of its pages that hold something."""
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


def _delete(connection: sqlite3.Connection, table: str, rows: int, before_ms: int | None = None) -> int:
    condition = "" if before_ms is None else "WHERE started_ms < ?"
    parameters = (rows,) if before_ms is None else (before_ms, rows)
    oldest = f"SELECT id FROM {table} {condition} ORDER BY started_ms LIMIT ?"  # noqa: S608  (names of ours)
    return connection.execute(f"DELETE FROM {table} WHERE id IN ({oldest})", parameters).rowcount  # noqa: S608


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
