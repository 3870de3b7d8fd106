"""The databases on which every store has to keep its contract."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.fakes import MemoryKeyPairs, MemorySessions, MemoryVFolders

from retort.core.ports import KeyPairStore, SessionStore, VFolderStore
from retort.sql.engine import Database, sqlite_url
from retort.sql.keypairs import SqlKeyPairs
from retort.sql.migrations import migrate
from retort.sql.sessions import SqlSessions
from retort.sql.vfolders import SqlVFolders


def _postgres_programs() -> Path | None:
    """The newest PostgreSQL that Debian's `postgresql` package has put on this host."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A fresh cluster on a unix socket, run by an unprivileged user (it refuses root)."""
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("no /usr/lib/postgresql/*/bin/postgres (apt install postgresql)")
    pytest.importorskip("asyncpg", reason="asyncpg is not installed")
    # Not in tmp_path: its parents are closed to other users.
    folder = Path(tempfile.mkdtemp(prefix="retort-pg-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]

    def do(*command: str) -> None:
        argv = [*as_user, str(programs / command[0]), *command[1:]]
        subprocess.run(argv, check=True, capture_output=True, cwd=folder)

    data, log = str(folder / "data"), str(folder / "log")
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    try:
        do("initdb", "--no-sync", "--auth=trust", "--username=retort", "--encoding=UTF8", data)
        do("pg_ctl", "start", "--wait", "-D", data, "-l", log, "-o", options)
        try:
            yield f"postgresql://retort@/postgres?host={folder}"
        finally:
            do("pg_ctl", "stop", "-D", data, "-m", "immediate")
    finally:
        shutil.rmtree(folder)


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
