"""The tables of `audit.db`, and the way of an older file to them: migrations in order, each in one transaction.

`PRAGMA user_version` is the number of migrations that a file has had. One is never changed once it was released; what
is new is a further one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

# Each is a list of statements.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE requests (
            id INTEGER PRIMARY KEY,
            request TEXT NOT NULL,
            started_ms INTEGER NOT NULL,
            endpoint TEXT NOT NULL,
            route TEXT,
            asked TEXT,
            model TEXT,
            target TEXT,
            rule TEXT,
            reason TEXT,
            attempts TEXT,
            status TEXT NOT NULL,
            code TEXT,
            http_status INTEGER,
            prompt_tokens INTEGER,
            cached_tokens INTEGER,
            completion_tokens INTEGER,
            ttft_ms INTEGER,
            duration_ms INTEGER NOT NULL,
            tokens_per_s REAL
        )""",
        # Lists go by the start; the id, which every index ends with, tells equal ones apart.
        "CREATE INDEX requests_by_start ON requests (started_ms)",
        "CREATE INDEX requests_by_model ON requests (model, started_ms)",
        # All that the counts of `stats` need, in their order: the table itself is not read for them.
        "CREATE INDEX requests_by_group ON requests (model, route, status, started_ms)",
        "CREATE INDEX requests_by_code ON requests (code, started_ms) WHERE code IS NOT NULL",
        """CREATE TABLE changes (
            id INTEGER PRIMARY KEY,
            started_ms INTEGER NOT NULL,
            operation TEXT NOT NULL,
            source TEXT NOT NULL,
            generation INTEGER NOT NULL,
            setting TEXT,
            old TEXT,
            new TEXT,
            subject TEXT,
            uid INTEGER,
            pid INTEGER,
            runtime_only INTEGER NOT NULL
        )""",
        "CREATE INDEX changes_by_start ON changes (started_ms)",
    ),
    (
        "ALTER TABLE requests ADD COLUMN key TEXT",
        "ALTER TABLE requests ADD COLUMN cost_micro_usd INTEGER",
        "CREATE INDEX requests_by_key ON requests (key, started_ms) WHERE key IS NOT NULL",
        "CREATE INDEX requests_by_failure ON requests (status, started_ms) WHERE status <> 'ok'",
    ),
    ("ALTER TABLE requests ADD COLUMN noise_removed TEXT",),
    ("ALTER TABLE requests ADD COLUMN ignored TEXT",),
)
_BUSY_S = 1.0
# Pages of the write-ahead log after which they go into the file: 2 MiB.
_CHECKPOINT_PAGES = 500
_WAL_BYTES = 2 << 20


class TooNewError(Exception):
    """The file is of a newer mlxd."""

    def __init__(self, path: Path, version: int, known: int) -> None:
        """Say both numbers, and what to do."""
        super().__init__(
            f"{path.name} is of a newer mlxd (schema {version}, this one knows up to {known}): nothing is logged until"
            " it is moved away"
        )


def open_for_writing(path: Path, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> sqlite3.Connection:
    """Open the file, made with mode 0600 if it is not there, and bring it to the present schema.

    Raises:
        TooNewError: its version is higher than any that is known; it is left as it is.
        sqlite3.Error, OSError: it cannot be opened, is locked, or is no database.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    try:
        version = _version(connection)
        if version > len(migrations):
            raise TooNewError(path, version, len(migrations))  # noqa: TRY301  (the connection is closed below)
        if version == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has to come before the first table
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        for number in range(version, len(migrations)):
            _migrate(connection, migrations[number], number + 1)
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the file for queries only; a row is read by the names of its columns.

    Raises:
        sqlite3.Error: it is not there, or is no database.
    """
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def is_broken(error: sqlite3.Error) -> bool:
    """Tell whether *error* means that the file is no database any more."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, statements: Sequence[str], version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _version(connection) < version:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
