"""The schema's history, and the way to its head.

`versions/` holds the steps, for Alembic. To add one: change tables.py, write the next version by
hand, set HEAD; a test compares what the steps make with tables.py.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from retort.errors import StoreFault
from retort.sql.engine import Database

HEAD = "0003"  #: the revision this version of Retort works with

_VERSION = sa.table("alembic_version", sa.column("version_num"))


async def migrate(database: Database) -> None:
    """Bring a database to HEAD; one that is there costs two queries and no import of Alembic.

    Processes that start at once take turns; all but the first find nothing to do. A migration
    that fails leaves the database as it was.

    Raises:
        StoreFault: the database failed, or a newer Retort has changed it.
    """
    async with database.read() as connection:
        if await _version(connection) == HEAD:
            return
    async with database.write_alone() as connection:
        if await _version(connection) != HEAD:
            await connection.run_sync(_upgrade)


async def _version(connection: AsyncConnection) -> str | None:
    has_table = await connection.run_sync(lambda sync: sa.inspect(sync).has_table(_VERSION.name))
    return await connection.scalar(sa.select(_VERSION.c.version_num)) if has_table else None


def _upgrade(connection: sa.Connection) -> None:
    # Alembic takes 80 ms to import, and nearly every start finds the database at HEAD.
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    script = ScriptDirectory(str(Path(__file__).parent))
    context = EnvironmentContext(
        config, script, fn=lambda revision, _: script._upgrade_revs(HEAD, revision)
    )
    try:
        with context:
            script.run_env()
    except CommandError as exc:
        raise StoreFault(f"database: {exc} (changed by a newer Retort?)") from exc
