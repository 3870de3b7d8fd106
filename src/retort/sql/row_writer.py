"""Rows written to SQLite on the event loop's own thread, for calls that a person waits for.

Waking a thread and being woken by it takes longer than the write itself, which is one into the page
cache: in WAL mode with synchronous=NORMAL a commit does not wait for the disk
(sqlite.org/pragma.html#pragma_synchronous). What may take time is left to others: waiting for a
lock, and merging the log into the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

Convert = Callable[[Any], Any]


class Locked(Exception):
    """Another process writes just now."""


class RowWriter:
    """A connection of one thread's, which never waits.

    Args:
        prepare: sets up the connection as all others are.
        options: of the dialect, as the engines have them.
    """

    def __init__(
        self, path: Path, prepare: Callable[[Any, object], None], options: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._prepare = prepare
        self._dialect = sqlite.dialect(paramstyle="named", **options)
        self._connection: sqlite3.Connection | None = None
        self._statements: dict[int, tuple[sa.Executable, str, dict[str, Convert | None]]] = {}

    def write(self, statement: sa.Insert | sa.Update, row: Mapping[str, Any]) -> int:
        """Execute a statement in a transaction of its own.

        Args:
            statement: the same object each time, as it is compiled once.
            row: a value for each of its parameters.

        Returns:
            How many rows it touched.

        Raises:
            Locked: nothing was done.
            sqlite3.IntegrityError: a unique key is taken.
            sqlite3.Error: the database failed.
        """
        known = self._statements.get(id(statement))
        if known is None:
            known = self._statements[id(statement)] = (statement, *self._compiled(statement, row))
        _, text, converts = known
        values = {
            name: row[name] if convert is None else convert(row[name])
            for name, convert in converts.items()
        }
        try:
            if self._connection is None:
                self._connection = self._connect()
            return self._connection.execute(text, values).rowcount
        except sqlite3.OperationalError as exc:
            # The low byte: further ones say why (sqlite.org/rescode.html).
            if exc.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise Locked from exc
            raise

    def close(self) -> None:
        """Close the connection; the next write opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> sqlite3.Connection:
        # Without an isolation level each statement is a transaction (docs.python.org, sqlite3).
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            self._prepare(connection, None)
            connection.execute("PRAGMA wal_autocheckpoint=0")
        except BaseException:
            connection.close()
            raise
        return connection

    def _compiled(
        self, statement: sa.Insert | sa.Update, row: Mapping[str, Any]
    ) -> tuple[str, dict[str, Convert | None]]:
        compiled = statement.compile(dialect=self._dialect, column_keys=list(row))
        converts: dict[str, Convert | None] = {
            name: bind.type.dialect_impl(self._dialect).bind_processor(self._dialect)
            for name, bind in compiled.binds.items()
        }
        return str(compiled), converts
