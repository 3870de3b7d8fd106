"""Kept answers: the ReplyStore, in a SQLite file of its own.

Apart from the other database, because it is written while a caller waits, and its loss would lose
nothing but the answers of a few minutes. One thread writes; a commit is in the host kernel's hands
when `put` returns, so it survives a kill of this process (not a loss of power, which ends the
sessions as well: sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from retort.core.ports import Clock
from retort.core.reply import Reply, ReplyKey
from retort.errors import StoreFault

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    used INTEGER PRIMARY KEY,   -- the smallest is the longest unused
    owner TEXT NOT NULL,
    token TEXT NOT NULL,
    request BLOB NOT NULL,
    status INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    body BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    kept_at REAL NOT NULL,  -- seconds since 1970
    UNIQUE (owner, token)
);
CREATE INDEX IF NOT EXISTS replies_by_age ON replies (kept_at);
CREATE INDEX IF NOT EXISTS replies_by_owner ON replies (owner, used, bytes);
"""
_WAL_BYTES = 4 * 1024 * 1024  # what its log may keep on disk between two writes


class SqliteReplies:
    """A `core.ports.ReplyStore` in a file; an async context manager that closes it.

    Args:
        path: made with mode 0600 if it is not there.
        keep_s: seconds after which an answer is forgotten.
        key_bytes: so much is kept for one access key.
        busy_s: seconds to wait for another process's lock.

    Raises:
        StoreFault: the file cannot be opened.
    """

    def __init__(
        self, path: Path, clock: Clock, *, keep_s: float, key_bytes: int, busy_s: float = 5.0
    ) -> None:
        self._clock = clock
        self._keep_s = keep_s
        self._key_bytes = key_bytes
        self._thread = ThreadPoolExecutor(1, "replies")
        with _door():
            self._db = _open(path, busy_s)

    async def __aenter__(self) -> SqliteReplies:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._in_thread(self._db.close)
        self._thread.shutdown()

    async def get(self, key: ReplyKey) -> Reply | None:
        """Find an answer that is not too old. Raises StoreFault."""
        return await self._in_thread(lambda: self._get(key))

    async def put(self, key: ReplyKey, reply: Reply) -> None:
        """Keep an answer; older ones make room for it. Raises StoreFault."""
        await self._in_thread(lambda: self._put(key, reply))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with _door():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)

    @property
    def _oldest(self) -> float:
        return self._clock.now().timestamp() - self._keep_s

    def _get(self, key: ReplyKey) -> Reply | None:
        row = self._db.execute(
            "SELECT used, request, status, content_type, body FROM replies"
            " WHERE owner = ? AND token = ? AND kept_at >= ?",
            (key.owner, key.token, self._oldest),
        ).fetchone()
        if row is None:
            return None
        with contextlib.suppress(sqlite3.Error):  # it is read; only its turn may come too early
            self._db.execute(
                "UPDATE replies SET used = (SELECT max(used) FROM replies) + 1 WHERE used = ?",
                (row[0],),
            )
        return Reply(*row[1:])

    def _put(self, key: ReplyKey, reply: Reply) -> None:
        now = self._clock.now().timestamp()
        with _transaction(self._db) as db:
            db.execute("DELETE FROM replies WHERE kept_at < ?", (now - self._keep_s,))
            db.execute("DELETE FROM replies WHERE owner = ? AND token = ?", (key.owner, key.token))
            self._make_room(key.owner, reply.size_bytes)
            db.execute(
                "INSERT INTO replies (owner, token, request, status, content_type, body, bytes,"
                " kept_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(key.owner, key.token, reply.request, reply.status, reply.content_type),
                    *(reply.body, reply.size_bytes, now),
                ),
            )

    def _make_room(self, owner: str, bytes_: int) -> None:
        (held,) = self._db.execute(
            "SELECT coalesce(sum(bytes), 0) FROM replies WHERE owner = ?", (owner,)
        ).fetchone()
        over = held + bytes_ - self._key_bytes
        if over <= 0:
            return
        longest_unused = self._db.execute(
            "SELECT used, bytes FROM replies WHERE owner = ? ORDER BY used", (owner,)
        )
        going = []
        for used, size in longest_unused:
            if over <= 0:
                break
            going.append((used,))
            over -= size
        self._db.executemany("DELETE FROM replies WHERE used = ?", going)


def _open(path: Path, busy_s: float) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # Every call is made by the one thread, but for this first one.
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=busy_s)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _door() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise StoreFault(f"kept answers: {exc}") from exc
