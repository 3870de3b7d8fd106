"""The databases on which every store has to keep its contract."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.fakes import MemoryKeyPairs, MemorySessions, MemoryVFolders
from tests.postgresql import running_cluster

from retort.core.ports import KeyPairStore, SessionStore, VFolderStore
from retort.sql.engine import Database, sqlite_url
from retort.sql.keypairs import SqlKeyPairs
from retort.sql.migrations import migrate
from retort.sql.sessions import SqlSessions
from retort.sql.vfolders import SqlVFolders


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A fresh cluster for all contracts."""
    with running_cluster() as cluster:
        yield cluster.url


_DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@contextlib.asynccontextmanager
async def _empty_database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Database]:
    is_sqlite = request.param == "sqlite"
    url = sqlite_url(tmp_path) if is_sqlite else request.getfixturevalue("postgresql_url")
    async with Database(url) as database:
        if not is_sqlite:
            async with database.write() as connection:
                await connection.exec_driver_sql("DROP SCHEMA public CASCADE")
                await connection.exec_driver_sql("CREATE SCHEMA public")
        yield database


@pytest.fixture(params=_DATABASES)
async def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database without tables."""
    async with _empty_database(request, tmp_path) as database:
        yield database


@pytest.fixture(params=["memory", *_DATABASES])
async def keypairs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyPairStore]:
    if request.param == "memory":
        yield MemoryKeyPairs()
        return
    async with _empty_database(request, tmp_path) as database:
        await migrate(database)
        yield SqlKeyPairs(database)


@pytest.fixture(params=["memory", *_DATABASES])
async def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionStore]:
    if request.param == "memory":
        yield MemorySessions()
        return
    async with _empty_database(request, tmp_path) as database:
        await migrate(database)
        yield SqlSessions(database)


@pytest.fixture(params=["memory", *_DATABASES])
async def vfolders(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VFolderStore]:
    if request.param == "memory":
        yield MemoryVFolders()
        return
    async with _empty_database(request, tmp_path) as database:
        await migrate(database)
        yield SqlVFolders(database)
