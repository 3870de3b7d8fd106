from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib
import multiprocessing
import os
import socket
import sqlite3
import traceback
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.fakes import START

from retort.core.keypair import KeyPair
from retort.core.session import Session, SessionStatus
from retort.errors import Conflict, StoreFault
from retort.sql.engine import Database, sqlite_url
from retort.sql.keypairs import SqlKeyPairs
from retort.sql.migrations import migrate
from retort.sql.sessions import SqlSessions


def _session(number: int, name: str = "") -> Session:
    return Session(
        id=uuid.UUID(int=number),
        name=name or f"name-{number}",
        owner="AK",
        user_id=uuid.UUID(int=1),
        image="gcc:12",
        asked_image="gcc",
        status=SessionStatus.PENDING,
        created_at=START + dt.timedelta(seconds=number),
    )


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(sqlite_url(tmp_path)) as database:
        await migrate(database)
        yield database


def _files(folder: Path) -> dict[str, os.stat_result]:
    return {file.name: file.stat() for file in folder.iterdir()}


async def _pragma(database: Database, name: str) -> object:
    async with database.read() as connection:
        return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()


# --- the file -----------------------------------------------------------------------------------


async def test_files_of_the_database_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with Database(sqlite_url(tmp_path / "new" / "state")) as database:
            await migrate(database)
            made = _files(tmp_path / "new" / "state")
    finally:
        os.umask(before)

    assert set(made) == {"retort.db", "retort.db-wal", "retort.db-shm"}
    assert {stat.st_mode & 0o777 for stat in made.values()} == {0o600}
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700


async def test_a_file_that_others_can_read_is_closed_to_them(tmp_path: Path) -> None:
    await Database(sqlite_url(tmp_path)).close()
    (tmp_path / "retort.db").chmod(0o644)

    await Database(sqlite_url(tmp_path)).close()

    assert (tmp_path / "retort.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_made_by_root_the_file_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    os.chown(tmp_path, 65_534, 65_534)

    async with Database(sqlite_url(tmp_path)) as database:
        await migrate(database)
        owners = {(stat.st_uid, stat.st_gid) for stat in _files(tmp_path).values()}

    assert owners == {(65_534, 65_534)}


async def test_a_new_file_is_in_wal_mode_and_leaves_no_scaffold(tmp_path: Path) -> None:
    await Database(sqlite_url(tmp_path)).close()

    assert list(_files(tmp_path)) == ["retort.db"]
    with contextlib.closing(sqlite3.connect(tmp_path / "retort.db")) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_connections_wait_for_locks_and_check_foreign_keys(database: Database) -> None:
    assert await _pragma(database, "journal_mode") == "wal"
    assert await _pragma(database, "synchronous") == 1  # NORMAL
    assert await _pragma(database, "foreign_keys") == 1
    assert await _pragma(database, "busy_timeout") == 5000


async def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    for number in range(2):
        async with Database(sqlite_url(tmp_path)) as database:
            await migrate(database)
            await SqlSessions(database).add(_session(number))
            assert len(await SqlSessions(database).live()) == number + 1


# --- several at once ----------------------------------------------------------------------------


async def test_200_adds_from_two_engines_on_one_file_all_arrive(
    tmp_path: Path, database: Database
) -> None:
    async with Database(sqlite_url(tmp_path)) as second:
        stores = [SqlSessions(database), SqlSessions(second)]

        await asyncio.gather(*(stores[n % 2].add(_session(n)) for n in range(200)))

        for store in stores:
            assert len(await store.live()) == 200


async def test_of_200_equal_names_from_two_engines_one_wins(
    tmp_path: Path, database: Database
) -> None:
    async with Database(sqlite_url(tmp_path)) as second:
        stores = [SqlSessions(database), SqlSessions(second)]

        outcomes = await asyncio.gather(
            *(stores[n % 2].add(_session(n, "same")) for n in range(200)), return_exceptions=True
        )

    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 199


def _start(folder: Path, number: int) -> None:
    async def run() -> None:
        async with Database(sqlite_url(folder)) as database:
            await migrate(database)
            await SqlSessions(database).add(_session(number))

    asyncio.run(run())


@pytest.mark.slow
async def test_processes_that_start_in_an_empty_folder_at_once_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_start, args=(tmp_path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)

    assert [process.exitcode for process in processes] == [0] * 4
    async with Database(sqlite_url(tmp_path)) as database:
        assert len(await SqlSessions(database).live()) == 4


# --- what fails ---------------------------------------------------------------------------------


async def test_a_locked_database_is_a_fault_and_no_hang(tmp_path: Path, database: Database) -> None:
    await SqlSessions(database).add(_session(1))
    with contextlib.closing(sqlite3.connect(tmp_path / "retort.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        async with Database(sqlite_url(tmp_path), busy_s=0.05) as second:
            store = SqlSessions(second)
            async with asyncio.timeout(60):
                with pytest.raises(StoreFault, match="locked"):
                    await store.add(_session(2))
                assert await store.live() == [_session(1)]  # readers do not wait

                other.rollback()
                await store.add(_session(2))


async def test_a_cancelled_call_leaves_the_store_usable(database: Database) -> None:
    store = SqlSessions(database)
    for number in range(50):
        task = asyncio.create_task(store.add(_session(number)))
        for _ in range(number % 10):
            await asyncio.sleep(0)  # so that it is cancelled in each of its steps
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    await store.add(_session(100))
    assert await store.get(uuid.UUID(int=100)) == _session(100)


async def test_a_damaged_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "retort.db").write_bytes(b"this is no database" * 100)

    async with Database(sqlite_url(tmp_path)) as database:
        with pytest.raises(StoreFault, match="not a database"):
            await migrate(database)


async def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StoreFault, match="cannot make"):
        Database(sqlite_url(tmp_path / "file" / "state"))


async def test_a_missing_table_is_a_fault(tmp_path: Path) -> None:
    async with Database(sqlite_url(tmp_path)) as database:
        with pytest.raises(StoreFault, match="no such table"):
            await SqlSessions(database).live()


async def test_secrets_are_in_no_error_text(database: Database) -> None:
    secret = "s3cr3t" * 6
    pair = KeyPair("AK", secret, "0" * 64, uuid.UUID(int=1), "a@b", START)
    store = SqlKeyPairs(database)
    await store.add(pair)

    with pytest.raises(Conflict) as caught:
        await store.add(pair)

    assert secret not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/db", "sqlite:///:memory:", "sqlite://"])
async def test_a_url_that_cannot_be_used_is_a_fault(url: str) -> None:
    with pytest.raises(StoreFault):
        Database(url)


async def test_without_asyncpg_postgresql_is_a_fault_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)

    with pytest.raises(StoreFault, match=r"retort\[postgresql\]"):
        Database("postgresql://host/db")


async def test_an_unreachable_postgresql_is_a_fault_without_its_password() -> None:
    pytest.importorskip("asyncpg")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = unheard.getsockname()[1]
        async with Database(f"postgresql://u:p4ssw0rd@127.0.0.1:{port}/db", busy_s=1) as database:
            assert "p4ssw0rd" not in repr(database)
            with pytest.raises(StoreFault) as caught:
                await migrate(database)

    assert "p4ssw0rd" not in "".join(traceback.format_exception(caught.value))


async def test_a_naive_time_is_refused(database: Database) -> None:
    with pytest.raises(StoreFault, match="aware"):
        await SqlSessions(database).forget_ended_before(dt.datetime(2026, 1, 1))


async def test_a_record_of_an_older_retort_gets_defaults(database: Database) -> None:
    store = SqlSessions(database)
    await store.add(_session(1))
    async with database.write() as connection:
        await connection.execute(sa.text("""UPDATE sessions SET limits = '{"gone": 1}'"""))

    assert await store.get(uuid.UUID(int=1)) == _session(1)


# --- transact -----------------------------------------------------------------------------------


async def test_what_raises_half_way_changes_nothing(database: Database) -> None:
    sessions = SqlSessions(database)

    def work(connection: sa.Connection) -> None:
        connection.execute(sa.text("DELETE FROM sessions"))
        raise KeyError

    await sessions.add(_session(1))
    with pytest.raises(KeyError):
        await database.transact(work)

    assert [session.id.int for session in await sessions.live()] == [1]


async def test_short_and_long_transactions_take_turns(tmp_path: Path) -> None:
    async with Database(sqlite_url(tmp_path), busy_s=0.05) as database:  # no time for collisions
        await migrate(database)
        sessions = SqlSessions(database)

        async def slow(number: int) -> None:
            async with database.write() as connection:
                await connection.execute(sa.text(f"PRAGMA user_version = {number}"))
                await connection.execute(sa.text("UPDATE sessions SET reason = 'seen'"))
                await asyncio.sleep(0.02)

        await asyncio.gather(*(slow(number) for number in range(20)),
                             *(sessions.add(_session(number)) for number in range(20)))  # fmt: skip

        assert len(await sessions.live()) == 20


async def test_a_short_transaction_waits_for_another_process_and_then_fails(
    tmp_path: Path,
) -> None:
    async with Database(sqlite_url(tmp_path), busy_s=0.05) as database:
        await migrate(database)
        with contextlib.closing(sqlite3.connect(tmp_path / "retort.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreFault, match="locked"):
                await SqlSessions(database).add(_session(1))
            other.rollback()

        await SqlSessions(database).add(_session(1))


async def test_a_row_is_written_before_the_loop_goes_on(database: Database) -> None:
    sessions = SqlSessions(database)
    await sessions.add(_session(1))  # opens the connection and compiles the statement
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "the loop went on")

    await sessions.add(_session(2))
    await sessions.update(_session(2, "renamed"))

    assert seen == []
    assert [session.name for session in await sessions.live()] == ["name-1", "renamed"]


async def test_a_row_waits_for_another_process_while_the_loop_goes_on(
    tmp_path: Path, database: Database
) -> None:
    sessions = SqlSessions(database)
    await sessions.add(_session(1))
    with contextlib.closing(sqlite3.connect(tmp_path / "retort.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        adding = asyncio.ensure_future(sessions.add(_session(2)))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not adding.done()
        other.rollback()
        await adding

    assert len(await sessions.live()) == 2


async def test_a_row_that_is_refused_changes_nothing(database: Database) -> None:
    sessions = SqlSessions(database)
    await sessions.add(_session(1, "taken"))
    for refused in (_session(1, "other"), _session(2, "taken")):
        with pytest.raises(Conflict):
            await sessions.add(refused)
    await sessions.add(_session(2))

    assert {session.name for session in await sessions.live()} == {"taken", "name-2"}


async def test_rows_reach_the_file_though_no_commit_waits_for_it(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retort.sql.engine.MERGE_AFTER", 20)
    sessions = SqlSessions(database)
    for number in range(19):
        await sessions.add(_session(number))
    assert _in_file(tmp_path / "retort.db") == 0
    await sessions.add(_session(19))

    async with asyncio.timeout(30):
        while _in_file(tmp_path / "retort.db") < 20:  # noqa: ASYNC110  a file is polled
            await asyncio.sleep(0.001)


def _in_file(path: Path) -> int:
    """Count sessions without the log, which a host that lost power may not have written whole."""
    alone = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    with (
        contextlib.closing(alone),
        contextlib.suppress(sqlite3.DatabaseError),
    ):  # no table, or half merged
        found: int = alone.execute("SELECT count(*) FROM sessions").fetchone()[0]
        return found
    return 0
