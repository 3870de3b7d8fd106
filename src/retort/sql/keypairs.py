"""Key pairs in SQL: the KeyPairStore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from retort.core.keypair import KeyPair, KeyPolicy
from retort.errors import Conflict, NotFound
from retort.sql.engine import Database
from retort.sql.tables import KEYPAIRS


class SqlKeyPairs:
    """A `core.ports.KeyPairStore` in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, keypair: KeyPair) -> None:
        """Keep a new key pair. Raises Conflict, StoreFault."""
        try:
            async with self._database.write() as connection:
                await connection.execute(KEYPAIRS.insert().values(_to_row(keypair)))
        except Conflict as exc:
            raise Conflict(f"access key {keypair.access_key} exists") from exc

    async def get(self, access_key: str) -> KeyPair | None:
        """Find by access key. Raises StoreFault."""
        return await self._one(KEYPAIRS.c.access_key == access_key)

    async def get_by_token(self, token_sha256: str) -> KeyPair | None:
        """Find by the digest of a bearer token. Raises StoreFault."""
        return await self._one(KEYPAIRS.c.token_sha256 == token_sha256)

    async def all(self) -> Sequence[KeyPair]:
        """Give every key pair, oldest first. Raises StoreFault."""
        query = KEYPAIRS.select().order_by(KEYPAIRS.c.created_at, KEYPAIRS.c.access_key)
        async with self._database.read() as connection:
            return [_from_row(row) for row in await connection.execute(query)]

    async def update(self, keypair: KeyPair) -> None:
        """Replace by access key. Raises NotFound, Conflict (another's token), StoreFault."""
        await self._change(KEYPAIRS.update().values(_to_row(keypair)), keypair.access_key)

    async def remove(self, access_key: str) -> None:
        """Forget by access key. Raises NotFound, StoreFault."""
        await self._change(KEYPAIRS.delete(), access_key)

    async def _one(self, condition: sa.ColumnElement[bool]) -> KeyPair | None:
        async with self._database.read() as connection:
            row = (await connection.execute(KEYPAIRS.select().where(condition))).first()
        return None if row is None else _from_row(row)

    async def _change(self, statement: sa.Update | sa.Delete, access_key: str) -> None:
        async with self._database.write() as connection:
            done = await connection.execute(statement.where(KEYPAIRS.c.access_key == access_key))
        if not done.rowcount:
            raise NotFound(f"no access key {access_key}")


def _to_row(keypair: KeyPair) -> dict[str, Any]:
    return {
        "access_key": keypair.access_key,
        "secret_key": keypair.secret_key,
        "token_sha256": keypair.token_sha256,
        "user_id": keypair.user_id,
        "email": keypair.email,
        "created_at": keypair.created_at,
        "is_active": keypair.is_active,
        "is_admin": keypair.is_admin,
        "max_sessions": keypair.policy.max_sessions,
        "rate_limit": keypair.policy.rate_limit,
        "max_memory_bytes": keypair.policy.max_memory_bytes,
        "max_cpus": keypair.policy.max_cpus,
        "max_vfolders": keypair.policy.max_vfolders,
        "max_vfolder_bytes": keypair.policy.max_vfolder_bytes,
    }


def _from_row(row: sa.Row[Any]) -> KeyPair:
    return KeyPair(
        access_key=row.access_key,
        secret_key=row.secret_key,
        token_sha256=row.token_sha256,
        user_id=row.user_id,
        email=row.email,
        created_at=row.created_at,
        is_active=row.is_active,
        is_admin=row.is_admin,
        policy=KeyPolicy(
            max_sessions=row.max_sessions,
            rate_limit=row.rate_limit,
            max_memory_bytes=row.max_memory_bytes,
            max_cpus=row.max_cpus,
            max_vfolders=row.max_vfolders,
            max_vfolder_bytes=row.max_vfolder_bytes,
        ),
    )
