"""What `migrate` promises on every database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from retort.errors import StoreFault
from retort.sql import migrations
from retort.sql.engine import Database
from retort.sql.migrations import HEAD, migrate
from retort.sql.tables import METADATA


def _differences(connection: sa.Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), METADATA))


def _conditions(connection: sa.Connection) -> dict[str, str]:
    """The WHERE of each partial index, which Alembic does not compare."""
    dialect = connection.dialect.name
    indexes = sa.inspect(connection).get_indexes("sessions")
    where = {index["name"]: index.get("dialect_options", {}) for index in indexes}
    return {
        str(name): str(options[f"{dialect}_where"])
        for name, options in where.items()
        if f"{dialect}_where" in options
    }


async def test_migrated_schema_equals_the_tables(empty_database: Database) -> None:
    await migrate(empty_database)

    async with empty_database.read() as connection:
        assert await connection.run_sync(_differences) == []


async def test_live_index_is_the_same_migrated_and_made_from_the_tables(
    empty_database: Database,
) -> None:
    await migrate(empty_database)
    async with empty_database.write() as connection:
        migrated = await connection.run_sync(_conditions)
        await connection.run_sync(METADATA.drop_all)
        await connection.run_sync(METADATA.create_all)
        made = await connection.run_sync(_conditions)

    assert set(migrated) == {"sessions_live_name"}
    assert migrated == made


async def test_head_is_the_last_version() -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))

    assert script.get_heads() == [HEAD]


async def test_at_head_nothing_is_written(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(empty_database)
    monkeypatch.delattr(Database, "write_alone")

    await migrate(empty_database)


async def test_processes_that_start_at_once_all_find_the_head(empty_database: Database) -> None:
    url = empty_database.engine.url.render_as_string(hide_password=False)
    others = [Database(url) for _ in range(5)]

    await asyncio.gather(*(migrate(other) for other in others))

    for other in others:
        await other.close()
    async with empty_database.read() as connection:
        assert await connection.run_sync(_differences) == []


async def test_a_database_of_a_newer_retort_is_refused_and_left_alone(
    empty_database: Database,
) -> None:
    await migrate(empty_database)
    async with empty_database.write() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(StoreFault, match=r"9999.*newer Retort"):
        await migrate(empty_database)

    async with empty_database.read() as connection:
        assert await connection.run_sync(_differences) == []


async def test_a_failed_migration_leaves_no_trace(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with empty_database.write() as connection:
        await connection.exec_driver_sql("CREATE TABLE sessions (x INTEGER)")

    with pytest.raises(StoreFault, match="sessions"):
        await migrate(empty_database)

    async with empty_database.read() as connection:
        tables = await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())
    assert tables == ["sessions"]
