"""The database's door: every difference between SQLite and PostgreSQL, and their errors.

Adapters in this package say `async with database.read()` or `.write()` and speak SQLAlchemy Core;
no error of SQLAlchemy or of a driver leaves these blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from retort.errors import Conflict, StoreFault
from retort.sql.row_writer import Locked, RowWriter

T = TypeVar("T")

_MIGRATION_LOCK = 0x5265746F7274  # "Retort": the advisory lock that migrating processes take
_POOL_WAIT_S = 10.0  # a call that gets no connection for so long fails
_POSTGRESQL_CONNECTIONS = 5
MERGE_AFTER = 500  # rows written on the loop's thread; each is some 4 KiB of the log


def sqlite_url(state: Path) -> str:
    """Give the URL of the database in a state folder."""
    return f"sqlite+aiosqlite:///{state.absolute() / 'retort.db'}"


class Database:
    """One database, opened by URL; an async context manager that closes it.

    Args:
        url: `sqlite+aiosqlite:///FILE`, or `postgresql://...`, which needs asyncpg. A SQLite file
            that is not there is made, with its folder (0700), readable by its owner only.
        busy_s: seconds to wait for another process's lock before a call fails.

    Raises:
        StoreFault: the URL or its driver cannot be used, or the file cannot be made.
    """

    def __init__(self, url: str, *, busy_s: float = 5.0) -> None:
        self._busy_s = busy_s
        self._short: sa.Engine | None = None  # of SQLite, for `transact`
        self._rows: RowWriter | None = None  # of SQLite, for `write_row`
        self._unmerged = 0  # rows since the log was last merged into the file
        self._merging: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "retort-sql")
        self._turn = asyncio.Semaphore(1)  # who writes to SQLite
        self._door_errors: tuple[type[Exception], ...] = (SQLAlchemyError, sqlite3.Error, OSError)
        try:
            parsed = sa.make_url(url)
        except ArgumentError as exc:
            raise StoreFault("database.url is not a database URL") from exc
        kind = parsed.drivername.partition("+")[0]
        if kind == "sqlite":
            self.engine = self._open_sqlite(parsed)
        elif kind in ("postgresql", "postgres"):
            self.engine = self._open_postgresql(parsed)
        else:
            raise StoreFault(f"database.url: {kind} is neither sqlite nor postgresql")

    def __repr__(self) -> str:
        return f"<Database {self.engine.url.render_as_string(hide_password=True)}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        if self._merging is not None:
            await asyncio.wait((self._merging,))
        if self._rows is not None:
            self._rows.close()
        if self._short is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._short.dispose)
        self._thread.shutdown()

    async def transact(self, work: Callable[[sa.Connection], T]) -> T:
        """Do something short in a transaction of its own; rolled back when it raises.

        For what a caller waits for: on SQLite all of it is one turn of one thread, where `write`
        takes a turn for each statement and several more around them.

        Raises:
            Conflict, StoreFault: as `write`; also when its turn does not come.
        """
        with self._door():
            if self._short is None:
                async with self.engine.begin() as connection:
                    return await connection.run_sync(work)
            async with self._my_turn():
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, _transact, self._short, work)

    async def write_row(self, statement: sa.Insert | sa.Update, row: Mapping[str, Any]) -> int:
        """Write a row in a transaction of its own: what a person waits for, on SQLite at once.

        Args:
            statement: a constant; `row` has a value for each of its parameters.

        Returns:
            How many rows it touched.

        Raises:
            Conflict, StoreFault: as `transact`.
        """
        if self._rows is not None and not self._turn.locked():
            with contextlib.suppress(Locked), self._door():
                touched = self._rows.write(statement, row)
                self._unmerged += 1
                if self._unmerged >= MERGE_AFTER and self._merging is None:
                    self._merge_soon()
                return touched
        return await self.transact(lambda db: db.execute(statement, row).rowcount)

    def _merge_soon(self) -> None:
        assert self._short is not None
        self._unmerged = 0
        loop = asyncio.get_running_loop()
        self._merging = loop.run_in_executor(self._thread, _merge, self._short)
        self._merging.add_done_callback(self._merged)

    def _merged(self, merging: asyncio.Future[None]) -> None:
        self._merging = None
        if not merging.cancelled() and (exc := merging.exception()) is not None:
            import structlog

            # Nothing is lost, and the next time will do.
            structlog.get_logger().warning("database.unmerged", reason=str(exc))

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection for reading.

        Raises:
            StoreFault: the database failed.
        """
        with self._door():
            async with self.engine.connect() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection in a transaction: committed at the end, rolled back on any error.

        Raises:
            Conflict: a unique key is taken.
            StoreFault: the database failed, or stayed locked.
        """
        with self._door():
            async with self._my_turn(), self.engine.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def write_alone(self) -> AsyncIterator[AsyncConnection]:
        """Lend a transaction that only one process holds at a time; DDL included.

        Raises:
            StoreFault: the database failed, or another process held it too long.
        """
        async with self.write() as connection:
            if self.engine.dialect.name == "sqlite":
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            yield connection

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[None]:
        """Wait for whoever writes here: by a signal, where SQLite would sleep and look again."""
        if self._short is None:
            yield
            return
        try:
            async with asyncio.timeout(_POOL_WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise StoreFault(f"database: busy for {_POOL_WAIT_S:g} s") from None
        try:
            yield
        finally:
            self._turn.release()

    @contextlib.contextmanager
    def _door(self) -> Iterator[None]:
        try:
            yield
        except (IntegrityError, sqlite3.IntegrityError) as exc:
            raise Conflict from exc
        except self._door_errors as exc:
            # A DBAPIError's own text repeats the whole statement; the driver's says what happened.
            cause = exc.orig if isinstance(exc, DBAPIError) else exc
            raise StoreFault(f"database: {cause}") from exc

    def _open_sqlite(self, url: sa.URL) -> AsyncEngine:
        if not url.database or url.database == ":memory:" or url.query:
            raise StoreFault("database.url: SQLite needs a plain file")
        try:
            _make_sqlite_file(Path(url.database))
        except (OSError, sqlite3.Error) as exc:
            raise StoreFault(f"database: cannot make {url.database}: {exc}") from exc
        options: dict[str, Any] = {
            # One connection is one thread. More would only wait for each other's write lock,
            # by sleeping, and could starve (sqlite.org/c3ref/busy_timeout.html).
            "pool_size": 1,
            "max_overflow": 0,
            # IMMEDIATE: a write takes the lock at its start, where the busy timeout applies;
            # a read that turns into a write fails at once (sqlite.org/rescode.html#busy_snapshot).
            "connect_args": {"timeout": self._busy_s, "isolation_level": "IMMEDIATE"},
            **_common_options(),
        }
        engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), **options)
        self._short = sa.create_engine(
            url.set(drivername="sqlite+pysqlite"), poolclass=sa.pool.QueuePool, **options
        )
        for each in (engine.sync_engine, self._short):
            sa.event.listen(each, "connect", _prepare_sqlite_connection)
        serializer = {"json_serializer": options["json_serializer"]}
        self._rows = RowWriter(Path(url.database), _prepare_sqlite_connection, serializer)
        return engine

    def _open_postgresql(self, url: sa.URL) -> AsyncEngine:
        try:
            asyncpg: Any = importlib.import_module("asyncpg")  # an extra, and without types
        except ImportError as exc:
            raise StoreFault("PostgreSQL needs asyncpg: pip install 'retort[postgresql]'") from exc
        # What goes wrong while asyncpg connects is not translated by SQLAlchemy.
        self._door_errors += (asyncpg.PostgresError, asyncpg.InterfaceError)
        return create_async_engine(
            url.set(drivername="postgresql+asyncpg"),
            pool_size=_POSTGRESQL_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,  # a restarted server must not cost anybody a request
            connect_args={
                "timeout": self._busy_s,
                "command_timeout": 60.0,  # s
                "server_settings": {"lock_timeout": str(int(self._busy_s * 1000))},  # ms
            },
            **_common_options(),
        )


def _transact(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _merge(engine: sa.Engine) -> None:
    """Copy what is in the log into the file, as far as nobody needs it (PRAGMA wal_checkpoint)."""
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")


def _common_options() -> dict[str, Any]:
    return {
        "pool_timeout": _POOL_WAIT_S,
        "hide_parameters": True,  # secret keys are parameters; error texts reach the log
        "json_serializer": lambda value: msgspec.json.encode(value).decode(),
        "json_deserializer": msgspec.json.decode,
    }


def _prepare_sqlite_connection(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _make_sqlite_file(path: Path) -> None:
    """Make an empty database in WAL mode that appears at once, whole, with mode 0600.

    The switch to WAL does not honour the busy timeout, so it must not happen where a second
    process can see the file. An existing file is never opened here: closing a descriptor would
    drop the locks that SQLite holds in this process (sqlite.org/howtocorrupt.html, 2.2).
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)  # it holds secret keys; say, restored from a backup as 0644
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".retort-db-") as folder:
        fresh = Path(folder, "retort.db")
        fresh.touch(mode=0o600)
        made = sqlite3.connect(fresh)
        try:
            made.execute("PRAGMA journal_mode=WAL")
        finally:
            made.close()
        if os.geteuid() == 0:
            # `sudo retort keys create` must not lock out a server that runs as somebody else.
            owner = path.parent.stat()
            os.chown(fresh, owner.st_uid, owner.st_gid)
        with contextlib.suppress(FileExistsError):  # another process was first
            path.hardlink_to(fresh)
